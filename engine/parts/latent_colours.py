"""Colours straight from latents, without a VAE: a rough picture, one pixel for each place of a latent frame.

A latent's colour is nearly a linear function of its channels; the factors were fitted by others, and are the same in
ComfyUI and blissful-tuner. Colours are shown as they are, as in ComfyUI; blissful-tuner stretches each preview to full
contrast, so that its brightness means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LatentColours:
    """RGB in -1..1 is the sum of a latent's channels times `factors`, plus `bias`; latents in the DiT's scale."""

    factors: tuple[tuple[float, float, float], ...]  # of each channel
    bias: tuple[float, float, float]
    tiny_vae: str  # name of the published tiny autoencoder for such latents (tae.py)

    def frames(self, latents_BCTHW: Tensor) -> Tensor:
        """The first clip as TCHW: RGB 0..1, float32, on the latents' device."""
        factors_CR = torch.tensor(self.factors, device=latents_BCTHW.device)
        bias_R11 = torch.tensor(self.bias, device=latents_BCTHW.device).view(3, 1, 1)
        rgb_TRHW = torch.einsum("cthw,cr->trhw", latents_BCTHW[0].float(), factors_CR) + bias_R11
        return ((rgb_TRHW + 1) / 2).clamp(0, 1)


# fmt: off
HUNYUAN = LatentColours(
    factors=(
        (-0.0395, -0.0331, 0.0445), (0.0696, 0.0795, 0.0518), (0.0135, -0.0945, -0.0282), (0.0108, -0.0250, -0.0765),
        (-0.0209, 0.0032, 0.0224), (-0.0804, -0.0254, -0.0639), (-0.0991, 0.0271, -0.0669), (-0.0646, -0.0422, -0.0400),
        (-0.0696, -0.0595, -0.0894), (-0.0799, -0.0208, -0.0375), (0.1166, 0.1627, 0.0962), (0.1165, 0.0432, 0.0407),
        (-0.2315, -0.1920, -0.1355), (-0.0270, 0.0401, -0.0821), (-0.0616, -0.0997, -0.0727),
        (0.0249, -0.0469, -0.1703),
    ),
    bias=(0.0259, -0.0192, -0.0761),
    tiny_vae="taehv",
)
"""For latents of HunyuanVideo's VAE times its SCALING_FACTOR."""
# fmt: on
