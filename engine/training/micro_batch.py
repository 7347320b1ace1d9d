"""One micro-batch of a training step: the noise and the noise levels that are drawn for it, and its error.

All draws follow from one seed, so it does not matter which process has the micro-batch, nor what happened before.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .experts import draw_within
from .setup import Batch, Setup
from .sigmas import SigmaSampling, loss_weight
from .step import flow_error, to_device


class Drawn(NamedTuple):
    """`sigma_B` is on the CPU; `error_BCTHW` squared and weighted, with a gradient.

    `plain_B` is each sample's mean without its weight, `idle_B` what it would be for a model that answers zero.
    """

    sigma_B: Tensor
    error_BCTHW: Tensor
    plain_B: Tensor
    idle_B: Tensor


def drawn_error(
    setup: Setup, sampling: SigmaSampling, batch: Batch, *, seed: int, bounds: tuple[float, float]
) -> Drawn:
    """Noise a batch and let the model in use, which works at the sigmas within `bounds`, take it away again."""
    device = setup.accelerator.device
    torch.manual_seed(seed)  # dropout
    latents_BCTHW = setup.latent_scale * batch["latents"].to(device, torch.float32, non_blocking=True)
    uniforms = batch.get("timesteps")
    sigma_B, timestep_B = draw_within(
        sampling,
        bounds,
        count=latents_BCTHW.shape[0],
        latent_size=(latents_BCTHW.shape[-2], latents_BCTHW.shape[-1]),
        generator=torch.Generator().manual_seed(seed),
        uniform_B=None if uniforms is None else torch.as_tensor(uniforms, dtype=torch.float32),
    )
    weight_B = loss_weight(sampling.weighting_scheme, timestep_B)
    if weight_B is not None:
        weight_B = weight_B.to(device)
    generator = torch.Generator(device=device).manual_seed(seed ^ 1)
    noise_BCTHW = torch.randn(latents_BCTHW.shape, generator=generator, device=device)
    with setup.accelerator.autocast():
        error_BCTHW = flow_error(
            setup.velocity,
            latents_BCTHW,
            to_device(setup.conditioning(batch), device),
            sigma_B=sigma_B.to(device),
            timestep_B=timestep_B.to(device),
            noise_BCTHW=noise_BCTHW,
            weight_B=weight_B,
        )
    mean_B = error_BCTHW.detach().flatten(1).mean(1)
    return Drawn(
        sigma_B=sigma_B,
        error_BCTHW=error_BCTHW,
        plain_B=mean_B if weight_B is None else mean_B / weight_B,
        idle_B=(noise_BCTHW - latents_BCTHW).square().flatten(1).mean(1),
    )
