"""One rectified-flow training step: the only place where the loss is defined.

It knows no family, no optimizer and no precision: whoever passes `velocity` decides how that runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as functional
from torch import Tensor

Velocity = Callable[[Tensor, Tensor, dict[str, Any]], Tensor]


def flow_step(
    velocity: Velocity,
    latents_BCTHW: Tensor,
    cond: dict[str, Any],
    *,
    sigma_B: Tensor,
    timestep_B: Tensor,
    noise_BCTHW: Tensor,
    weight_B: Tensor | None = None,
) -> Tensor:
    """The loss of one batch, a float32 scalar.

    x = (1 - sigma) clean + sigma noise, and the model is asked for noise - clean at `timestep_B` (0..1000)
    (Liu et al., arXiv 2209.03003; Esser et al., arXiv 2403.03206). The squared error is taken element by element in
    float32, multiplied by each sample's weight, and averaged over everything.
    """
    latents_BCTHW, noise_BCTHW = latents_BCTHW.float(), noise_BCTHW.float()
    guess_BCTHW = velocity(add_noise(latents_BCTHW, noise_BCTHW, sigma_B), timestep_B, cond)
    error_BCTHW = functional.mse_loss(guess_BCTHW.float(), noise_BCTHW - latents_BCTHW, reduction="none")
    if weight_B is not None:
        error_BCTHW = error_BCTHW * _over_samples(weight_B, error_BCTHW)
    return error_BCTHW.mean()


def add_noise(latents_BCTHW: Tensor, noise_BCTHW: Tensor, sigma_B: Tensor) -> Tensor:
    """Mix latents and noise on the straight line between them: sigma 0 is clean, 1 is noise."""
    sigma = _over_samples(sigma_B, latents_BCTHW)
    return (1.0 - sigma) * latents_BCTHW + sigma * noise_BCTHW


def _over_samples(value_B: Tensor, like: Tensor) -> Tensor:
    return value_B.view(-1, *[1] * (like.ndim - 1))
