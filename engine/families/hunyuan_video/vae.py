"""HunyuanVideo's VAE for this family: cached samples, latents for the DiT, frames. The work is parts/hunyuan_vae.

Two scales meet here. The DiT takes and gives latents times 0.476986, and so do `encode`, `decode` and latent files;
a cache holds them without that factor, as musubi-tuner's do, and training multiplies (`options.LATENT_SCALE`).
A cache holds one draw of the posterior; it is drawn with a seed that follows from the clip, so that caching again
gives the same file. What a generation starts from is the posterior's mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ...parts import hunyuan_vae
from ...parts.hunyuan_vae import Tiles, compute_dtype
from ...parts.hunyuan_vae_network import HunyuanVae
from ...parts.hunyuan_vae_public import LATENT_CHANNELS, SPACE_STRIDE, TIME_STRIDE
from ...parts.latent_colours import HUNYUAN
from ...parts.weights import open_weights
from ..values import Clips
from .detect import check_role

__all__ = [
    "CACHE_DTYPE", "COLOURS", "LATENT_CHANNELS", "SPACE_STRIDE", "TIME_STRIDE", "compute_dtype", "decode",
    "decode_frames", "encode", "load", "training_samples",
]  # fmt: skip

CACHE_DTYPE = torch.float16
COLOURS = HUNYUAN
SCALE = hunyuan_vae.SCALING_FACTOR


def load(path: str | Path, *, device: torch.device | str, dtype: torch.dtype | None) -> HunyuanVae:
    """The VAE of any public layout: Tencent's, diffusers' or ComfyUI's. WeightsError for another kind of file."""
    file = open_weights(path, role="--vae")
    check_role(file.shapes, wanted="vae", flag="--vae", source=f"--vae {file.path.name}")
    return hunyuan_vae.load(file, device=device, dtype=dtype)


def encode(vae: HunyuanVae, clip_BCFHW: Tensor, *, tile_pixels: int | None = None) -> Tensor:
    """RGB in -1..1, F = 4n + 1, to latents_BCTHW as the DiT takes them: the posterior's mean times 0.476986, float32.

    `tile_pixels`: clips of larger height or width are encoded in tiles of this size; None: never. DataError.
    """
    return SCALE * hunyuan_vae.encode(vae, clip_BCFHW, tiles=Tiles(pixels=tile_pixels)).mean_BCTHW


def decode(vae: HunyuanVae, latents_BCTHW: Tensor, *, tile_pixels: int | None = 256) -> Tensor:
    """The reverse: RGB in -1..1, clamped, float32 [B, C, F, H, W] in main memory."""
    return hunyuan_vae.decode(vae, latents_BCTHW / SCALE, tiles=Tiles(pixels=tile_pixels))


def decode_frames(vae: HunyuanVae, latents_BCTHW: Tensor, *, tile_pixels: int | None = 256) -> Iterator[Tensor]:
    """`decode` tile after tile along F, in order. `tile_pixels` counts pixels of the result."""
    return hunyuan_vae.decode_frames(vae, latents_BCTHW / SCALE, tiles=Tiles(pixels=tile_pixels))


def training_samples(
    vae: HunyuanVae,
    clips: Clips,
    *,
    dtype: torch.dtype,
    image_encoder: object = None,
    tile_pixels: int | None = None,
) -> list[list[dict[str, Tensor]]]:
    """One sample a clip: "latents" CTHW, a draw of the posterior in the VAE's own scale."""
    latents_BCTHW = hunyuan_vae.seeded_latents(vae, clips.frames_BCFHW, tiles=Tiles(pixels=tile_pixels))
    return [[{"latents": latents_CTHW}] for latents_CTHW in latents_BCTHW.to(dtype)]
