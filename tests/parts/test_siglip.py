"""SigLIP: transformers' features and transformers' preprocessing through every layout; the head is left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.contract.errors import DataError, WeightsError
from engine.parts import siglip
from engine.parts import tiny_encoders as tiny
from engine.parts.weights import open_weights, write_weights


@pytest.fixture(scope="module")
def weights():
    return {name: value.half() for name, value in tiny.siglip_tensors(3, width=48).items()}


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(1)
    return [random.integers(0, 256, size, dtype=np.uint8) for size in ((40, 30, 3), (100, 160, 3), (56, 56, 3))]


@pytest.fixture(scope="module")
def processor():
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    return lambda size: SiglipImageProcessorPil(size={"height": size, "width": size})


@pytest.fixture(scope="module")
def wanted(weights, images, processor):
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    model = SiglipVisionModel(config).eval()
    model.load_state_dict({name.removeprefix("vision_model."): value.float() for name, value in weights.items()})
    pixels = torch.cat([processor(56).preprocess(image, return_tensors="pt").pixel_values for image in images])
    with torch.no_grad():
        return model(pixels).last_hidden_state


def load(path, *, dtype=torch.float32):
    return siglip.load(open_weights(path, role="--image_encoder"), device="cpu", dtype=dtype)


@pytest.fixture
def path(weights, tmp_path):
    write_weights(tmp_path / "sigclip.safetensors", weights, metadata={"head_dim": "24"})
    return tmp_path / "sigclip.safetensors"


def test_features_are_transformers(path, images, wanted):
    encoder = load(path)
    assert encoder.image_size == 56
    features = siglip.encode(encoder, images)
    assert features.shape == (3, 16, 48) and (features - wanted).abs().max() <= 1e-5
    assert not any(name.startswith("head") for name, _ in encoder.model.named_parameters())


@pytest.mark.parametrize("size", [56, 384])
def test_preprocessing_is_transformers(images, processor, size):
    """PIL's bicubic on 8-bit numbers: antialiased, and rounded before it is scaled."""
    for image in images:
        theirs = processor(size).preprocess(image, return_tensors="pt").pixel_values
        assert (siglip.preprocess([image], image_size=size) - theirs).abs().max() <= 1e-6


@pytest.mark.parametrize("kind", ["no prefix", "image_encoder.", "without head", "whole model"])
def test_every_layout_loads_alike(weights, images, wanted, tmp_path, kind):
    tensors = weights
    if kind == "no prefix":
        tensors = {name.removeprefix("vision_model."): value for name, value in weights.items()}
    elif kind == "image_encoder.":
        tensors = {kind + name: value for name, value in weights.items()}
    elif kind == "without head":
        tensors = {name: value for name, value in weights.items() if ".head." not in name}
    else:
        tensors = {**weights, "text_model.head.bias": torch.ones(1), "logit_scale": torch.ones(1)}
        tensors["vision_model.embeddings.position_ids"] = torch.arange(16)[None]
    write_weights(tmp_path / "file.safetensors", tensors, metadata={"head_dim": "24"})
    assert (siglip.encode(load(tmp_path / "file.safetensors"), images) - wanted).abs().max() <= 1e-5


def test_the_published_sizes():
    """384 pixels make 27 x 27 patches of 14 although 27 x 14 is 378; heads have 72 numbers."""
    shapes = {
        "embeddings.patch_embedding.weight": (1152, 3, 14, 14),
        "embeddings.position_embedding.weight": (729, 1152),
        "encoder.layers.0.mlp.fc1.weight": (4304, 1152),
        "encoder.layers.26.mlp.fc1.weight": (4304, 1152),
    }
    config = siglip.build(shapes).config
    assert (config.image_size, config.num_attention_heads, config.num_hidden_layers) == (384, 16, 27)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_number_formats(path, images, wanted, dtype):
    features = siglip.encode(load(path, dtype=dtype), images)
    assert features.dtype == dtype and (features.float() - wanted).norm() / wanted.norm() < 0.05


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_images_that_do_not_fit(path, image):
    with pytest.raises(DataError, match="8-bit RGB"):
        siglip.encode(load(path), [image])


def test_files_that_do_not_fit(weights, tmp_path):
    path = tmp_path / "file.safetensors"
    write_weights(path, weights)
    with pytest.raises(WeightsError, match="width 48 is not a multiple of the head size 72"):
        load(path)
    write_weights(path, {"embeddings.patch_embedding.weight": torch.zeros(48, 3, 14, 14)})
    with pytest.raises(WeightsError, match="lacks embeddings.position_embedding.weight"):
        load(path)
