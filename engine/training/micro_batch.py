"""One micro-batch of a training step: the noise and the noise levels that are drawn for it, and its error.

All draws follow from one seed, so it does not matter which process has the micro-batch, nor what happened before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .experts import draw_within
from .setup import Batch, Setup
from .sigmas import SigmaSampling, loss_weight
from .step import flow_error, to_device


def drawn_error(
    setup: Setup, sampling: SigmaSampling, batch: Batch, *, seed: int, bounds: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """(sigma_B on the CPU, weighted squared error BCTHW). `bounds`: the sigmas that the model in use works at."""
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
            weight_B=None if weight_B is None else weight_B.to(device),
        )
    return sigma_B, error_BCTHW
