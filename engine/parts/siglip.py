"""Images -> SigLIP features (so400m, patch 14, 384 pixels; transformers' class), which FramePack conditions on.

An image is resized to a square without keeping its aspect (PIL's bicubic on 8-bit numbers, as transformers' image
processor does) and scaled to -1..1, and the states of all patches after the last norm are taken. The pooling head in
public files is neither loaded nor run.

Does not know clips, caches or DiTs. Given up: the text side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..contract.errors import DataError, WeightsError
from .weights import WeightFile, load_into, metadata_number

DEFAULT_HEAD_DIM = 72
PUBLISHED_IMAGE_SIZE, PUBLISHED_PATCHES = 384, 27  # 384 is not a multiple of 14: the last 6 pixels are not seen

_PREFIXES = ("image_encoder.", "module.", "model.", "vision_model.")
_DROPPED = ("head.", "embeddings.position_ids", "text_model.", "logit_scale", "logit_bias")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class Siglip:
    """The vision model. `image_size`: side of its square images in pixels. `dtype`: what it computes in and returns."""

    model: nn.Module
    image_size: int
    device: torch.device
    dtype: torch.dtype


def siglip_name(name: str) -> str | None:
    """SiglipVisionModel's name for a tensor of any public layout; None for the pooling head and the text side."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return None if name.startswith(_DROPPED) else name


def siglip_shapes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an image encoder file as SiglipVisionModel has them, without the pooling head."""
    return {ours: tuple(shape) for name, shape in shapes.items() if (ours := siglip_name(name)) is not None}


def build(shapes: Shapes, *, head_dim: int = DEFAULT_HEAD_DIM) -> Any:
    """A SiglipVisionModel without pooling head on the meta device, sized by shapes under its names. WeightsError."""
    from transformers.models.siglip.configuration_siglip import SiglipVisionConfig
    from transformers.models.siglip.modeling_siglip import SiglipVisionModel

    try:
        width, _, patch, _ = shapes["embeddings.patch_embedding.weight"]
        tokens = shapes["embeddings.position_embedding.weight"][0]
        inner = shapes["encoder.layers.0.mlp.fc1.weight"][0]
    except KeyError as error:
        raise WeightsError(
            f"The image encoder lacks {error.args[0]}, so it is not a whole SigLIP model.",
            "Give --image_encoder a SigLIP, e.g. sigclip_vision_patch14_384.safetensors.",
        ) from error
    if width % head_dim:
        raise WeightsError(
            f"The image encoder's width {width} is not a multiple of the head size {head_dim}.",
            "A file with another head size has to give it in the safetensors metadata key head_dim.",
        )
    side = math.isqrt(tokens)
    config = SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.layers.")),
        num_attention_heads=width // head_dim,
        image_size=PUBLISHED_IMAGE_SIZE if side == PUBLISHED_PATCHES else side * patch,
        patch_size=patch,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
        vision_use_head=False,
    )
    with torch.device("meta"):
        return SiglipVisionModel(config).eval().requires_grad_(False)


def load(file: WeightFile, *, device: torch.device | str, dtype: torch.dtype) -> Siglip:
    """Load the vision model from any public layout.

    The head size is 72 unless the safetensors metadata key `head_dim` says otherwise. Raises WeightsError.
    """
    model = build(siglip_shapes(file.shapes), head_dim=metadata_number(file, "head_dim", default=DEFAULT_HEAD_DIM))
    load_into(model, file, rename=siglip_name, device=device, dtype=dtype)
    embeddings = model.embeddings  # position_ids are not in the file: created with the module, so still on "meta"
    embeddings.position_ids = torch.arange(embeddings.num_positions, device=device).unsqueeze(0)
    return Siglip(model, model.config.image_size, torch.device(device), dtype)


def preprocess(images: Sequence[np.ndarray], *, image_size: int) -> Tensor:
    """0..255 uint8 RGB images [H, W, 3] of any size to -1..1 float32 squares [B, 3, size, size] on the CPU."""
    from PIL import Image

    squares = []
    for image_HWC in images:
        if image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or image_HWC.dtype != np.uint8:
            raise DataError(
                f"SigLIP takes 8-bit RGB images [height, width, 3], not {image_HWC.dtype} {list(image_HWC.shape)}."
            )
        small = Image.fromarray(image_HWC).resize((image_size, image_size), Image.Resampling.BICUBIC)
        squares.append(torch.from_numpy(np.array(small)).permute(2, 0, 1))
    return (torch.stack(squares).float() * (1 / 255) - 0.5) / 0.5


@torch.no_grad()
def encode(encoder: Siglip, images: Sequence[np.ndarray]) -> Tensor:
    """Features [B, patches, D] (729 x 1152 in the published model) of 0..255 uint8 RGB images [H, W, 3]."""
    pixels_BCHW = preprocess(images, image_size=encoder.image_size)
    return encoder.model(pixel_values=pixels_BCHW.to(encoder.device, encoder.dtype)).last_hidden_state
