"""Guidance worked into Pocket HunyuanVideo, as into the published model, so that one prediction a step is enough.

A frozen copy of the model is guided for real, and the model learns to predict the same when it is told how strongly.
Told PLAIN, which is what a LoRA's training tells it, it stays as it was (Meng et al., arXiv 2210.03142).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from engine.families.hunyuan_video.model import GUIDANCE_UNIT
from engine.training.step import add_noise

from .train_dit import Examples, Recipe, draw_sigmas, dropped
from .train_hunyuan import PLAIN, HunyuanPocket

UNGUIDED_NAME = "pocket_hunyuan_t2v_unguided.safetensors"
"""The DiT as it was before, which the model learns from."""
STRONGEST, PLAIN_SHARE = 10.0, 0.25
_STRENGTH = 0.6  # 6, the engine's default, is a real guidance of 4


def strength(embedded_B: Tensor) -> Tensor:
    """The scale of real guidance that an embedded guidance stands for."""
    return PLAIN + _STRENGTH * (embedded_B - PLAIN)


def guided_cost(
    teacher: HunyuanPocket, pocket: HunyuanPocket, examples: Examples, nothing_NL: Tensor, recipe: Recipe
) -> Tensor:
    """The mean squared difference to the guided velocity of one random batch."""
    latents_BCTHW, cond = examples.draw(recipe.batch)
    device = latents_BCTHW.device
    ids_BL = dropped(cond["ids"], nothing_NL, share=recipe.dropped)
    sigma_B = draw_sigmas(recipe.batch, recipe, device=device)
    x_BCTHW = add_noise(latents_BCTHW, torch.randn_like(latents_BCTHW), sigma_B)
    embedded_B = PLAIN + (STRONGEST - PLAIN) * torch.rand(recipe.batch, device=device)
    embedded_B = embedded_B.masked_fill(torch.rand(recipe.batch, device=device) < PLAIN_SHARE, PLAIN)
    with torch.no_grad():
        both_BL = torch.cat([ids_BL, nothing_NL[:1].expand(len(ids_BL), -1)])
        found = teacher.velocity(x_BCTHW.repeat(2, 1, 1, 1, 1), 1000.0 * sigma_B.repeat(2), {"ids": both_BL})
        asked_BCTHW, nothing_BCTHW = found.chunk(2)
        wanted_BCTHW = nothing_BCTHW.lerp(asked_BCTHW, strength(embedded_B).view(-1, 1, 1, 1, 1))
    told = {"ids": ids_BL, "guidance": GUIDANCE_UNIT * embedded_B}
    return functional.mse_loss(pocket.velocity(x_BCTHW, 1000.0 * sigma_B, told), wanted_BCTHW)
