"""How a toy video comes about: as the simplest real ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...parts.batching import batch_of_one
from ..values import Denoise, Encoders, Request, Velocity
from . import model
from .vae import LATENT_CHANNELS, SPACE_STRIDE, TIME_STRIDE


def texts(request: Request) -> list[str]:
    """The prompt, and the negative prompt where guidance needs it."""
    return [request.prompt, *([request.negative_prompt] if request.guided else [])]


def prepare(request: Request, encoders: Encoders) -> dict[str, Any]:
    """The toy's videos start from nothing but words."""
    return {}


@torch.no_grad()
def video_latents(
    dit: nn.Module,
    request: Request,
    *,
    texts: Mapping[str, Mapping[str, Tensor]],
    inputs: Mapping[str, Any],
    denoise: Denoise,
    device: torch.device,
) -> Tensor:
    """Clean latents, BCTHW float32. The noise is always drawn on the CPU."""
    latent_frames = (request.frames - 1) // TIME_STRIDE + 1
    shape = (1, LATENT_CHANNELS, latent_frames, request.height // SPACE_STRIDE, request.width // SPACE_STRIDE)
    noise_BCTHW = torch.randn(shape, generator=torch.Generator().manual_seed(request.seed)).to(device)

    def under(text: str) -> Velocity:
        cond = model.cond_from_batch(batch_of_one(texts[text], device=device))
        return lambda x_BCTHW, timestep_B: model.velocity(dit, x_BCTHW, timestep_B, cond)

    return denoise(under(request.prompt), under(request.negative_prompt) if request.guided else None, noise_BCTHW)
