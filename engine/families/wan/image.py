"""The image encoder of image-to-video models: the CLIP vision tower in `--clip` (clip.py)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from . import clip


def load(files: Mapping[str, str], *, device: torch.device | str) -> clip.ClipVision:
    """The tower in `files["clip"]`: float16, what it is published for; float32 on a CPU. Raises WeightsError."""
    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.float16
    return clip.load(files["clip"], device=device, dtype=dtype)
