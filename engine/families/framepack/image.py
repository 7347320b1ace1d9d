"""SigLIP for FramePack: what the model is shown of the picture that a video starts from.

The encoder is `parts.siglip`. Knows no clips and no sections.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...parts import siglip
from ...parts.siglip import Siglip
from ...parts.weights import open_weights
from ..values import Files
from .detect import check_role

FLAG = "--image_encoder"


def load(files: Files, *, device: torch.device | str) -> Siglip:
    """The SigLIP in `files["image_encoder"]`, in float16 (float32 on a CPU). WeightsError for another kind of file."""
    file = open_weights(files["image_encoder"], role=FLAG)
    check_role(file.shapes, wanted="image-encoder", flag=FLAG, source=f"{FLAG} {file.path.name}")
    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.float16
    return siglip.load(file, device=device, dtype=dtype)


def encode(encoder: Siglip, images: Sequence[np.ndarray]) -> Tensor:
    """States [B, 729, 1152] of 0..255 uint8 RGB pictures [H, W, 3]."""
    return siglip.encode(encoder, images)


def encode_pixels(encoder: Siglip, pictures_BCHW: Tensor) -> Tensor:
    """`encode` of RGB pictures in -1..1, brought back to the whole numbers 0..255 that they were."""
    bytes_BHWC = ((pictures_BCHW.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return encode(encoder, list(bytes_BHWC.cpu().numpy()))
