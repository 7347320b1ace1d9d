"""What tests of a VAE that takes whole clips give it, and what it makes of that."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from zoo.whole_clip import WholeClip
from zoo.whole_clip_hunyuan import WholeHunyuanClip

CHANNELS, SPACE_STRIDE, TIME_STRIDE = 16, 8, 4


class Coded(NamedTuple):
    """A random clip with the mean and the log variance of its latents, and a clip, in -1..1, of random latents."""

    clip_BCFHW: Tensor
    mean_BCTHW: Tensor
    log_variance_BCTHW: Tensor
    latents_BCTHW: Tensor
    decoded_BCFHW: Tensor


def coded(coder: WholeClip | WholeHunyuanClip, *, frames: int, height: int, width: int) -> Coded:
    """Two clips of this size to latents, and latents of two to clips."""
    clip_BCFHW = torch.rand(2, 3, frames, height, width) * 2 - 1
    latent_frames = (frames - 1) // TIME_STRIDE + 1
    latents_BCTHW = torch.randn(2, CHANNELS, latent_frames, height // SPACE_STRIDE, width // SPACE_STRIDE)
    with torch.no_grad():
        moments = coder.encode(clip_BCFHW)
        return Coded(clip_BCFHW, *moments, latents_BCTHW, coder.decode(latents_BCTHW).clamp(-1, 1))
