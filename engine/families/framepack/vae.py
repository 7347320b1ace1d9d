"""HunyuanVideo's VAE as FramePack uses it: latents times SCALING_FACTOR, training samples by section, and decoding.

The network is `parts.hunyuan_vae`; how clips are cut into training samples is `samples`. Decoding section by section
repeats what the published code does: every section is decoded together with its neighbour, and the pixels fade into
each other where they overlap; `bulk` decodes everything at once.

A cache holds one draw of the posterior, with a seed that follows from the clip, so that caching again gives the same
file; what a generation starts from is the posterior's mean. Tiles in time keep memory bounded; tiles in space are made
only when asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...contract.errors import DataError
from ...parts import hunyuan_vae
from ...parts.hunyuan_vae import SCALING_FACTOR, Tiles, compute_dtype
from ...parts.hunyuan_vae_network import HunyuanVae
from ...parts.hunyuan_vae_public import LATENT_CHANNELS, SPACE_STRIDE, TIME_STRIDE
from ...parts.latent_colours import HUNYUAN
from ...parts.weights import open_weights
from ..values import Clips
from . import samples
from .detect import check_role
from .sections import WINDOW, cut_clip, section_pixel_frames

__all__ = [
    "CACHE_DTYPE", "COLOURS", "LATENT_CHANNELS", "SPACE_STRIDE", "TIME_STRIDE", "FramePackVae", "compute_dtype",
    "decode", "decode_frames", "encode", "load", "training_samples",
]  # fmt: skip

CACHE_DTYPE = torch.float16
COLOURS = HUNYUAN
TILE_FRAMES = 64
SECTION_TILE_FRAMES = 80  # a section of 9 latent frames with its neighbour is decoded whole


@dataclass(frozen=True)
class FramePackVae:
    """The network, and the size of tiles in space in pixels; None: no such tiles."""

    network: HunyuanVae
    tile_pixels: int | None = None

    @property
    def device(self) -> torch.device:
        return self.network.device

    def tiles(self, frames: int) -> Tiles:
        return Tiles(frames=frames, pixels=self.tile_pixels)


def load(
    path: str | Path, *, device: torch.device | str, dtype: torch.dtype | None, tile_pixels: int | None = None
) -> FramePackVae:
    """Load a HunyuanVideo VAE of any public layout. `dtype` None keeps the file's.

    `tile_pixels` (a multiple of 32): work in tiles of this height and width; None: whole pictures.
    Raises WeightsError when the file is not such a VAE.
    """
    file = open_weights(path, role="--vae")
    check_role(file.shapes, wanted="vae", flag="--vae", source=f"--vae {file.path.name}")
    vae = FramePackVae(hunyuan_vae.load(file, device=device, dtype=dtype), tile_pixels)
    vae.tiles(TILE_FRAMES)  # refuses sizes that do not divide, before anything is encoded
    return vae


def encode(vae: FramePackVae, clip_BCFHW: Tensor) -> Tensor:
    """RGB in -1..1, 4n+1 frames, to float32 latents_BCTHW as the DiT takes them: the posterior's mean, scaled."""
    return hunyuan_vae.encode(vae.network, clip_BCFHW, tiles=vae.tiles(TILE_FRAMES)).mean_BCTHW * SCALING_FACTOR


def decode(vae: FramePackVae, latents_BCTHW: Tensor) -> Tensor:
    """All at once to a clip_BCFHW in main memory, RGB in -1..1, clamped."""
    return torch.cat([chunk.cpu() for chunk in decode_frames(vae, latents_BCTHW, bulk=True)], dim=2)


# -------------------------------------------------------------------------------------------------- training samples


def training_samples(
    vae: FramePackVae,
    clips: Clips,
    *,
    dtype: torch.dtype,
    image_encoder: Any = None,
    f1: bool = False,
    one_frame: bool = False,
    no_2x: bool = False,
    no_4x: bool = False,
) -> list[list[dict[str, Tensor]]]:
    """For each clip its sections in the order of time, or with `one_frame` the image beside its controls (samples.py).

    DataError when a clip is too short, or cannot be trained on in this way.
    """
    cut_clip(clips.frames_BCFHW.shape[2], window=clips.window, one_frame=one_frame)
    if image_encoder is None:
        raise DataError("FramePack's samples need SigLIP's view of the start image.", "Give --image_encoder.")

    def draw(pixels_BCFHW: Tensor) -> Tensor:
        tiles = vae.tiles(TILE_FRAMES)
        return hunyuan_vae.seeded_latents(vae.network, pixels_BCFHW, tiles=tiles) * SCALING_FACTOR

    if not one_frame:
        return samples.section_samples(draw, clips, dtype=dtype, image_encoder=image_encoder, f1=f1)
    return samples.one_frame_samples(
        draw, partial(encode, vae), clips, dtype=dtype, image_encoder=image_encoder, no_2x=no_2x, no_4x=no_4x
    )


# ----------------------------------------------------------------------------------------------------------- decoding


def decode_frames(
    vae: FramePackVae, latents_BCTHW: Tensor, *, window: int = WINDOW, bulk: bool = False
) -> Iterator[Tensor]:
    """clip_BCFHW pieces along F in order, float32 RGB in -1..1: n latent frames make 4n-3 frames.

    Section by section, or with `bulk` in one go. How many sections there are is read off the latents (musubi-tuner
    takes it from --video_seconds even where --video_sections was given). DataError when they are not whole sections.
    """
    latents_BCTHW = latents_BCTHW / SCALING_FACTOR
    total = latents_BCTHW.shape[2]
    if bulk or total == 1:
        return hunyuan_vae.decode_frames(vae.network, latents_BCTHW, tiles=vae.tiles(TILE_FRAMES))
    if (total - 1) % window:
        raise DataError(
            f"{total} latent frames are not a start frame and whole sections of {window}.",
            "Give the --latent_window_size that they were made with, or --bulk_decode.",
        )
    return _decode_sections(vae, latents_BCTHW, window)


def _decode_sections(vae: FramePackVae, latents_BCTHW: Tensor, window: int) -> Iterator[Tensor]:
    """Each section with its neighbour; where two overlap the earlier one fades out, the later one in."""
    overlap, tail = section_pixel_frames(window), None
    count = (latents_BCTHW.shape[2] - 1) // window
    for index in range(count):
        first = 0 if index == 0 else 1 + index * window
        piece = latents_BCTHW[:, :, first : 1 + (index + 2) * window]
        tiles = vae.tiles(SECTION_TILE_FRAMES)
        pixels = torch.cat([p.cpu() for p in hunyuan_vae.decode_frames(vae.network, piece, tiles=tiles)], dim=2)
        if tail is not None:
            later_F = torch.linspace(0, 1, overlap).view(1, 1, -1, 1, 1)
            pixels[:, :, :overlap] = torch.lerp(tail, pixels[:, :, :overlap], later_F)
        if index == count - 1:
            yield pixels
        else:
            yield pixels[:, :, :-overlap]
            tail = pixels[:, :, -overlap:]
