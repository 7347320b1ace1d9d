"""Wan's image encoder: its own layout and ComfyUI's give transformers' numbers, and the last block is left out."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from engine.contract.errors import DataError, WeightsError
from engine.families.wan import clip, tiny
from engine.parts.weights import write_weights


@pytest.fixture(scope="module")
def model():
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14,
        hidden_act="gelu", projection_dim=8,
    )  # fmt: skip
    return CLIPVisionModelWithProjection(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 40, 30, generator=torch.Generator().manual_seed(1)) * 2 - 1


def wan_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights as Wan's checkpoint keeps them: fused projections, leading axes of 1, a text tower beside."""

    def get(name: str) -> torch.Tensor:
        return state[f"vision_model.{name}"]

    tensors = {
        "log_scale": torch.tensor(1.0),
        "textual.token_embedding.weight": torch.zeros(3, 2),
        "visual.cls_embedding": get("embeddings.class_embedding")[None, None],
        "visual.pos_embedding": get("embeddings.position_embedding.weight")[None],
        "visual.patch_embedding.weight": get("embeddings.patch_embedding.weight"),
        "visual.head": state["visual_projection.weight"].T.contiguous(),
    }
    for part in ("weight", "bias"):
        tensors[f"visual.pre_norm.{part}"] = get(f"pre_layrnorm.{part}")
        tensors[f"visual.post_norm.{part}"] = get(f"post_layernorm.{part}")
        for number in range(3):
            ours, layer = f"visual.transformer.{number}", f"encoder.layers.{number}"
            fused = [get(f"{layer}.self_attn.{letter}_proj.{part}") for letter in "qkv"]
            tensors[f"{ours}.attn.to_qkv.{part}"] = torch.cat(fused)
            tensors[f"{ours}.attn.proj.{part}"] = get(f"{layer}.self_attn.out_proj.{part}")
            for index in (1, 2):
                tensors[f"{ours}.norm{index}.{part}"] = get(f"{layer}.layer_norm{index}.{part}")
                tensors[f"{ours}.mlp.{2 * index - 2}.{part}"] = get(f"{layer}.mlp.fc{index}.{part}")
    return tensors


@pytest.fixture(scope="module", params=["wan", "comfyui"])
def path(request, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    state = model.state_dict()
    if request.param == "wan":
        tensors = wan_names(state)
    else:
        tensors = {**state, "vision_model.embeddings.position_ids": torch.arange(5)[None]}
    write_weights(folder / "clip.safetensors", tensors, metadata={"head_dim": "16"})
    return folder / "clip.safetensors"


def test_features_are_the_states_before_the_last_block(path, model, images):
    tower = clip.load(path, device="cpu", dtype=torch.float32)
    pixels = clip.preprocess(images, image_size=28)
    wanted = model(pixels, output_hidden_states=True).hidden_states[-2]
    assert tower.image_size == 28
    assert (clip.encode(tower, images) - wanted).abs().max() <= 1e-5
    assert len(tower.model.encoder.layers) == 2


def test_parts_of_a_fused_weight_do_not_hold_it_whole(path):
    tower = clip.load(path, device="cpu", dtype=torch.float32)
    weight = tower.model.encoder.layers[0].self_attn.q_proj.weight
    assert weight.untyped_storage().nbytes() == weight.numel() * 4


def test_half_precision(path, images):
    tower = clip.load(path, device="cpu", dtype=torch.float16)
    features = clip.encode(tower, images)
    wanted = clip.encode(clip.load(path, device="cpu", dtype=torch.float32), images)
    assert features.dtype == torch.float16 and (features.float() - wanted).norm() / wanted.norm() < 0.01


def test_preprocessing_is_bicubic_without_antialias(images):
    """Wan's own code shrinks without antialiasing; torchvision's and PIL's resize would differ."""
    found = clip.preprocess(images, image_size=14)
    small = functional.interpolate(images, size=(14, 14), mode="bicubic", align_corners=False, antialias=False)
    red = (small[:, 0] * 0.5 + 0.5 - 0.48145466) / 0.26862954
    assert torch.allclose(found[:, 0], red, atol=1e-6)
    with pytest.raises(DataError, match="RGB images"):
        clip.preprocess(images[0], image_size=14)


def test_the_published_head_size_is_the_default(path, tmp_path):
    write_weights(tmp_path / "file.safetensors", load_file(path))
    with pytest.raises(WeightsError, match="not a multiple of the head size 80"):
        clip.load(tmp_path / "file.safetensors", device="cpu", dtype=torch.float32)


def test_other_files_are_named(tmp_path):
    write_weights(tmp_path / "file.safetensors", tiny.text_tensors(0, rows=64))
    with pytest.raises(WeightsError, match="UMT5"):
        clip.load(tmp_path / "file.safetensors", device="cpu", dtype=torch.float32)
