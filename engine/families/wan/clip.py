"""Images -> CLIP features for image-to-video: the vision tower of Wan's XLM-RoBERTa CLIP (transformers' class).

Wan takes the hidden states before the last block, class token first; so the last block is neither loaded nor run.
Loads Wan's own file (.pth, text tower ignored), its visual-only conversions, and ComfyUI's clip_vision_h.

Does not know clips, caches or the DiT. Given up: the projection head and everything about text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...contract.errors import DataError, WeightsError
from ...parts.weights import WeightFile, load_into, metadata_number, open_weights
from .detect import check_role
from .keys import clip_parts

DEFAULT_HEAD_DIM = 80
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's own normalisation of 0..1 RGB."""

_PREFIX = "vision_model."


@dataclass
class ClipVision:
    """The vision tower without its last block. `image_size`: it sees squares of so many pixels."""

    model: nn.Module
    image_size: int
    device: torch.device
    dtype: torch.dtype


class _Parts:
    """A CLIP file seen as transformers' tensors: what Wan's layout fuses appears in parts."""

    def __init__(self, file: WeightFile) -> None:
        self.path, self.role, self.metadata = file.path, file.role, file.metadata
        self._file = file
        self._sources: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in file.shapes.items():
            for ours, part in clip_parts(name, torch.empty(shape, device="meta")).items():
                if ours.startswith(_PREFIX):
                    ours = ours[len(_PREFIX) :]
                    self._sources[ours] = name
                    self.shapes[ours] = tuple(part.shape)

    def read(self, name: str, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        whole = self._file.read(self._sources[name], device=device, dtype=dtype)
        return clip_parts(self._sources[name], whole)[_PREFIX + name].clone()


def build(shapes: Mapping[str, tuple[int, ...]], *, head_dim: int = DEFAULT_HEAD_DIM) -> Any:
    """A CLIPVisionModel on the meta device, sized by shapes under its own names. Raises WeightsError."""
    from transformers.models.clip.configuration_clip import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPVisionModel

    try:
        width, _, patch, _ = shapes["embeddings.patch_embedding.weight"]
        tokens = shapes["embeddings.position_embedding.weight"][0]
        inner = shapes["encoder.layers.0.mlp.fc1.weight"][0]
    except KeyError as error:
        raise WeightsError(f"--clip: the file lacks {error}.", "Check that the file is whole.") from error
    if width % head_dim:
        raise WeightsError(
            f"--clip: the width {width} is not a multiple of the head size {head_dim}.",
            "A file of another head size says so in its metadata key head_dim.",
        )
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.layers.")),
        num_attention_heads=width // head_dim,
        image_size=math.isqrt(tokens - 1) * patch,
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
    )
    with torch.device("meta"):
        return CLIPVisionModel(config).eval().requires_grad_(False)


def load(path: str | Path, *, device: torch.device | str, dtype: torch.dtype, whole: bool = False) -> ClipVision:
    """Load the vision tower from any public layout; `whole` keeps the last block (which Wan does not use).

    The head size is 80 unless the safetensors metadata key `head_dim` says otherwise. Raises WeightsError.
    """
    file = open_weights(path, role="--clip")
    check_role(file.shapes, wanted="clip-vision", flag="--clip", source=f"--clip {file.path.name}")
    parts = _Parts(file)
    model = build(parts.shapes, head_dim=metadata_number(file, "head_dim", default=DEFAULT_HEAD_DIM))
    unused = ""
    if not whole:
        del model.encoder.layers[-1]
        unused = f"encoder.layers.{len(model.encoder.layers)}."

    def rename(name: str) -> str | None:
        return None if unused and name.startswith(unused) else name

    load_into(model, parts, rename=rename, device=device, dtype=dtype)
    _place_positions(model, device)
    return ClipVision(model, model.config.image_size, torch.device(device), dtype)


def _place_positions(model: Any, device: torch.device | str) -> None:
    """Position ids are no weights: transformers makes them with the module, so on "meta" they have no values."""
    embeddings = model.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions, device=device).unsqueeze(0)


def preprocess(frames_BCHW: Tensor, *, image_size: int) -> Tensor:
    """RGB in -1..1 of any size to CLIP's normalised squares: bicubic without antialiasing, aspect not kept, as Wan's
    own code does. float32 is advised."""
    if frames_BCHW.ndim != 4 or frames_BCHW.shape[1] != 3:
        raise DataError(f"The CLIP encoder takes RGB images [batch, 3, height, width], not {list(frames_BCHW.shape)}.")
    size = (image_size, image_size)
    squares_BCHW = functional.interpolate(frames_BCHW, size=size, mode="bicubic", align_corners=False)
    mean, std = (squares_BCHW.new_tensor(values).view(1, 3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    return (squares_BCHW * 0.5 + 0.5 - mean) / std


@torch.no_grad()
def encode(clip: ClipVision, frames_BCHW: Tensor) -> Tensor:
    """Features [B, tokens, D] (257 x 1280 in the published model) of RGB images in -1..1, in the tower's dtype."""
    pixels_BCHW = preprocess(frames_BCHW.to(clip.device, torch.float32), image_size=clip.image_size)
    return clip.model(pixel_values=pixels_BCHW.to(clip.dtype)).last_hidden_state
