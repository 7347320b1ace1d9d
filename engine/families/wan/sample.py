"""How a Wan video comes about: the latent's shape, its noise, the conditioning.

The denoising itself is handed in, because every family uses the same one (`engine/sampling`): Wan asks for it once for
a whole video, other families once a section.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import model
from .vae import LATENT_CHANNELS, SPACE_STRIDE, TIME_STRIDE

Velocity = Callable[[Tensor, Tensor], Tensor]
Denoise = Callable[[Velocity, "Velocity | None", Tensor], Tensor]
"""`(conditional, unconditional or None, noise_BCTHW) -> latents_BCTHW`: solver, schedule and guidance are inside."""


def latent_shape(*, width: int, height: int, frames: int) -> tuple[int, int, int, int, int]:
    """The latent of one video, BCTHW. `width`, `height` in pixels, multiples of 16; `frames` = 4n + 1."""
    return (1, LATENT_CHANNELS, (frames - 1) // TIME_STRIDE + 1, height // SPACE_STRIDE, width // SPACE_STRIDE)


def draw_noise(shape: tuple[int, ...], *, seed: int, device: torch.device, on_cpu: bool = False) -> Tensor:
    """Standard normal noise, float32, on `device`.

    Drawn by the device's own generator, as the reference does; `on_cpu` draws by the CPU's, which gives the same video
    on every machine and is what ComfyUI does.
    """
    origin = torch.device("cpu") if on_cpu else device
    generator = torch.Generator(origin).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=origin, dtype=torch.float32).to(device)


def velocity_for(dit: nn.Module, cond: dict[str, Any]) -> Velocity:
    """The DiT under one conditioning, as solvers want it."""

    def velocity(x_BCTHW: Tensor, timestep_B: Tensor) -> Tensor:
        return model.velocity(dit, x_BCTHW, timestep_B, cond)

    return velocity


@torch.no_grad()
def video_latents(
    dit: nn.Module, *, text_LD: Tensor, negative_LD: Tensor | None, noise_BCTHW: Tensor, denoise: Denoise
) -> Tensor:
    """The clean latents of one text-to-video sample, BCTHW float32. `negative_LD` None: no unconditional pass."""
    conditional = velocity_for(dit, {"text": [text_LD]})
    unconditional = None if negative_LD is None else velocity_for(dit, {"text": [negative_LD]})
    return denoise(conditional, unconditional, noise_BCTHW)
