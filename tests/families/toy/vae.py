"""Clips to latents and back, without loss: 16 x 16 pixels become 768 channels, every frame stays a frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from ...parts.latent_colours import LatentColours
from ...parts.weights import open_weights
from ..values import Clips
from .detect import check_role
from .options import LATENT_SCALE

SPACE_STRIDE = 16
TIME_STRIDE = 1
LATENT_CHANNELS = 3 * SPACE_STRIDE**2
CACHE_DTYPE = torch.float16
_SHARE = 1 / (LATENT_SCALE * SPACE_STRIDE**2)  # each colour is the mean of its pixels, which follow each other
COLOURS = LatentColours(
    factors=tuple(
        tuple(_SHARE * (colour == own) for own in range(3)) for colour in range(3) for _ in range(SPACE_STRIDE**2)
    ),
    bias=(0.0, 0.0, 0.0),
    tiny_vae="toy",
)


@dataclass(frozen=True)
class ToyVae:
    """A number to multiply with, and where to do that."""

    scale: float
    device: torch.device
    dtype: torch.dtype


def compute_dtype(device: torch.device) -> torch.dtype:
    """Everywhere the same."""
    return torch.float32


def load(path: str | Path, *, device: torch.device | str, dtype: torch.dtype | None, contrast: float = 1.0) -> ToyVae:
    """Read the one number of the file. WeightsError for another kind of file."""
    file = open_weights(path, role="--vae")
    check_role(file.shapes, wanted="vae", flag="--vae", source=f"--vae {file.path.name}")
    return ToyVae(float(file.read("latent_scale")) * contrast, torch.device(device), dtype or torch.float32)


def encode(vae: ToyVae, clip_BCFHW: Tensor) -> Tensor:
    """RGB in -1..1 to latents_BCTHW as the DiT takes them, float32."""
    frames_BFCHW = clip_BCFHW.to(vae.device, vae.dtype).transpose(1, 2)
    return vae.scale * LATENT_SCALE * pixel_unshuffle(frames_BFCHW, SPACE_STRIDE).transpose(1, 2).float()


def decode_frames(vae: ToyVae, latents_BCTHW: Tensor) -> Iterator[Tensor]:
    """Frames one by one, RGB in -1..1."""
    for latent_BC1HW in (latents_BCTHW.to(vae.device) / (vae.scale * LATENT_SCALE)).split(1, dim=2):
        yield pixel_shuffle(latent_BC1HW.transpose(1, 2), SPACE_STRIDE).transpose(1, 2).float().clamp(-1, 1)


def decode(vae: ToyVae, latents_BCTHW: Tensor) -> Tensor:
    """The whole clip, RGB in -1..1."""
    return torch.cat(list(decode_frames(vae, latents_BCTHW)), dim=2)


def training_samples(
    vae: ToyVae, clips: Clips, *, dtype: torch.dtype, image_encoder: Any = None, contrast: float = 1.0
) -> list[list[dict[str, Tensor]]]:
    """What the latent cache keeps of each clip: one sample, not scaled yet. `contrast` is in the VAE already."""
    latents_BCTHW = (encode(vae, clips.frames_BCFHW) / LATENT_SCALE).to(dtype)
    return [[{"latents": latents_CTHW}] for latents_CTHW in latents_BCTHW]
