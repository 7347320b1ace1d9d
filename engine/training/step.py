"""One rectified-flow training step: the only place where the loss is defined.

It knows no family, no optimizer and no precision: whoever passes `velocity` decides how that runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
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
    """The loss of one batch, a float32 scalar: the mean of `flow_error`."""
    return flow_error(
        velocity,
        latents_BCTHW,
        cond,
        sigma_B=sigma_B,
        timestep_B=timestep_B,
        noise_BCTHW=noise_BCTHW,
        weight_B=weight_B,
    ).mean()


def flow_error(
    velocity: Velocity,
    latents_BCTHW: Tensor,
    cond: dict[str, Any],
    *,
    sigma_B: Tensor,
    timestep_B: Tensor,
    noise_BCTHW: Tensor,
    weight_B: Tensor | None = None,
) -> Tensor:
    """The squared error of each element, BCTHW, float32.

    x = (1 - sigma) clean + sigma noise, and the model is asked for noise - clean at `timestep_B` (0..1000)
    (Liu et al., arXiv 2209.03003; Esser et al., arXiv 2403.03206). The error is taken in float32 and multiplied by
    each sample's weight.
    """
    latents_BCTHW, noise_BCTHW = latents_BCTHW.float(), noise_BCTHW.float()
    guess_BCTHW = velocity(add_noise(latents_BCTHW, noise_BCTHW, sigma_B), timestep_B, cond)
    return _squared(guess_BCTHW, noise_BCTHW - latents_BCTHW, weight_B)


def prior_error(
    velocity: Velocity,
    prior: Velocity,
    latents_BCTHW: Tensor,
    cond: dict[str, Any],
    *,
    sigma_B: Tensor,
    timestep_B: Tensor,
    noise_BCTHW: Tensor,
    weight_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(the squared difference from what `prior` predicts, the `flow_error`), each BCTHW, float32, weighted.

    Prior preservation (Ruiz et al., DreamBooth, arXiv 2208.12242), with the model's own prediction instead of clips
    that it made: it says what the model knows without the noise of single clips, and needs none that are the model's.
    """
    latents_BCTHW, noise_BCTHW = latents_BCTHW.float(), noise_BCTHW.float()
    noisy_BCTHW = add_noise(latents_BCTHW, noise_BCTHW, sigma_B)
    known_BCTHW = prior(noisy_BCTHW, timestep_B, cond).detach().float()
    guess_BCTHW = velocity(noisy_BCTHW, timestep_B, cond)
    truth_BCTHW = noise_BCTHW - latents_BCTHW
    return _squared(guess_BCTHW, known_BCTHW, weight_B), _squared(guess_BCTHW, truth_BCTHW, weight_B)


def _squared(guess_BCTHW: Tensor, target_BCTHW: Tensor, weight_B: Tensor | None) -> Tensor:
    error_BCTHW = functional.mse_loss(guess_BCTHW.float(), target_BCTHW, reduction="none")
    return error_BCTHW if weight_B is None else error_BCTHW * _over_samples(weight_B, error_BCTHW)


def add_noise(latents_BCTHW: Tensor, noise_BCTHW: Tensor, sigma_B: Tensor) -> Tensor:
    """Mix latents and noise on the straight line between them: sigma 0 is clean, 1 is noise."""
    sigma = _over_samples(sigma_B, latents_BCTHW)
    return (1.0 - sigma) * latents_BCTHW + sigma * noise_BCTHW


def _over_samples(value_B: Tensor, like: Tensor) -> Tensor:
    return value_B.view(-1, *[1] * (like.ndim - 1))


def to_device(value: Any, device: torch.device) -> Any:
    """Tensors in any nesting of dicts, lists and tuples, moved."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: to_device(entry, device) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_device(entry, device) for entry in value)
    return value
