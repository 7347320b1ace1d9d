"""Clips to latents, all of a training set at once: for the DiT, and for the tables that normalise them.

Whole clips at a time: the engine's chunks are for clips that do not fit, and of many small ones they take far longer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from engine.families.wan import vae as wan_vae
from engine.families.wan.conditions import image_condition

from .pace import Pace
from .whole_clip import WholeClip, activation, mixed_precision

Prepare = Callable[[Tensor], Tensor]
_BATCH = 256


def to_pixels(clips_BFHWC: Tensor) -> Tensor:
    """uint8 clips as they are drawn to clip_BCFHW, RGB in -1..1 float32, channels last."""
    return clips_BFHWC.permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0


def encode_all(vae: wan_vae.WanVae, clips_NFHWC: np.ndarray, *, compiled: bool) -> Tensor:
    """Latents as the engine's `encode` makes them, bf16 on the VAE's device, [N, C, T, H, W]."""
    return in_batches(clips_NFHWC, _encoder(vae, compiled), vae.device, name="encode")


def first_frames(vae: wan_vae.WanVae, clips_NFHWC: np.ndarray, *, compiled: bool) -> Tensor:
    """What image-to-video gets beside the noise, for clips that begin as these do: bf16 [N, 20, T, H, W]."""
    encode, frames = _encoder(vae, compiled), clips_NFHWC.shape[1]

    def condition(clip_BCFHW: Tensor) -> Tensor:
        return image_condition(encode, clip_BCFHW[:, :, 0], frames=frames)

    return in_batches(clips_NFHWC[:, :1], condition, vae.device, name="first frames")


def tables(vae: wan_vae.WanVae, clips_NFHWC: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and deviation of each latent channel over the clips, of a VAE that does not normalise yet."""
    return moments(encode_all(vae, clips_NFHWC, compiled=False))


def moments(latents_NCTHW: Tensor) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel."""
    total = latents_NCTHW.float()
    mean, std = total.mean(dim=(0, 2, 3, 4)), total.std(dim=(0, 2, 3, 4))
    return [round(float(value), 5) for value in mean], [round(max(float(value), 1e-3), 5) for value in std]


def _encoder(vae: wan_vae.WanVae, compiled: bool) -> Prepare:
    """The engine's `encode` for whole clips, in bf16 on a GPU."""
    network = WholeClip(vae.float(), activate=activation(compiled, vae.device))
    mean_1C111, inverse_std_1C111 = vae.tables()

    def encode(clip_BCFHW: Tensor) -> Tensor:
        with mixed_precision(vae.device):
            mean_BCTHW, _ = network.encode(clip_BCFHW)
        return (mean_BCTHW.float() - mean_1C111) * inverse_std_1C111

    return encode


@torch.no_grad()
def in_batches(clips_NFHWC: np.ndarray, prepare: Prepare, device: torch.device, *, name: str) -> Tensor:
    """`prepare` of all clips, bf16."""
    pace, made = Pace(name, 60.0), []
    for start in range(0, len(clips_NFHWC), _BATCH):
        picked = torch.from_numpy(np.ascontiguousarray(clips_NFHWC[start : start + _BATCH])).to(device)
        made.append(prepare(to_pixels(picked)).bfloat16())
        pace.steps += 1
        speed = pace.time_to_tell()
        if speed is not None:
            pace.tell(speed, f"{start + len(picked):,} of {len(clips_NFHWC):,} clips")
    return torch.cat(made)
