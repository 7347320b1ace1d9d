"""One micro-batch of a training step: draw its noise levels and noise, and compute its error.

All draws follow from one seed, so neither the process that has the micro-batch nor anything before it matters.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .experts import draw_within
from .setup import Batch, Setup
from .sigmas import SigmaSampling, loss_weight
from .step import flow_error, prior_error, to_device


class Drawn(NamedTuple):
    """What one micro-batch comes to: means over each sample's elements, float32, on the device unless noted.

    `loss`: a scalar with a gradient. `sigma_B`: 0..1, on the CPU. `error_B`: each sample's squared error times its
    weight. `plain_B`: the same unweighted. `idle_B`: what a model that always answers zero would score, unweighted.
    `strayed`: for a batch of prior preservation, the weighted squared distance from the base model's answer, else None.
    """

    loss: Tensor
    sigma_B: Tensor
    error_B: Tensor
    plain_B: Tensor
    idle_B: Tensor
    strayed: Tensor | None = None


def drawn_error(
    setup: Setup, sampling: SigmaSampling, batch: Batch, *, seed: int, bounds: tuple[float, float]
) -> Drawn:
    """Noise a batch at sigmas within `bounds`, the range of the expert in use, and compare what the model predicts."""
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
    weight_B = to_device(loss_weight(sampling.weighting_scheme, timestep_B), device)
    generator = torch.Generator(device=device).manual_seed(seed ^ 1)
    noise_BCTHW = torch.randn(latents_BCTHW.shape, generator=generator, device=device)
    cond = to_device(setup.conditioning(batch), device)
    drawn = to_device({"sigma_B": sigma_B, "timestep_B": timestep_B}, device)
    drawn |= {"noise_BCTHW": noise_BCTHW, "weight_B": weight_B}
    strayed = None
    with setup.accelerator.autocast():
        if setup.prior is not None and (batch.get("prior") or setup.shared is not None):
            strayed_BCTHW, error_BCTHW = prior_error(setup.velocity, setup.prior, latents_BCTHW, cond, **drawn)
            strayed = strayed_BCTHW.mean() if batch.get("prior") else None
        else:
            error_BCTHW = flow_error(setup.velocity, latents_BCTHW, cond, **drawn)
    error_B = error_BCTHW.detach().flatten(1).mean(1)
    return Drawn(
        loss=error_BCTHW.mean() if strayed is None else setup.prior_weight * strayed,
        sigma_B=sigma_B,
        error_B=error_B,
        plain_B=error_B if weight_B is None else error_B / weight_B,
        idle_B=(noise_BCTHW - latents_BCTHW).square().flatten(1).mean(1),
        strayed=None if strayed is None else strayed.detach(),
    )
