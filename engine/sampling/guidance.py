"""Classifier-free guidance as wrappers around a velocity (Ho & Salimans, 2207.12598).

A wrapper takes velocities and gives one back; solvers never know. Schedules of the scale and skipped passes are
wrappers of the same shape and do not belong here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]


def guided(conditional: Velocity, unconditional: Velocity | None, scale: float, *, rescale: float = 0.0) -> Velocity:
    """v = uncond + scale·(cond − uncond), by two calls of the model one after the other.

    At scale 1 the unconditional velocity would cancel out: it is never called and may be None.
    """
    if scale == 1:
        return conditional
    if unconditional is None:
        raise ValueError("guidance with a scale other than 1 needs an unconditional velocity")

    def velocity(x: Tensor, timestep_B: Tensor) -> Tensor:
        cond = conditional(x, timestep_B)
        return _combine(cond, unconditional(x, timestep_B), scale, rescale)

    return velocity


def guided_batch(both: Velocity, scale: float, *, rescale: float = 0.0) -> Velocity:
    """As `guided`, by one call of the model on a batch of twice the size.

    `both` must treat the first half of its batch as conditional and the second half as unconditional. Faster than two
    calls where the GPU is not full, and needs the memory of two. At scale 1 use the conditional velocity itself.
    """

    def velocity(x: Tensor, timestep_B: Tensor) -> Tensor:
        cond, uncond = both(torch.cat([x, x]), torch.cat([timestep_B, timestep_B])).chunk(2)
        return _combine(cond, uncond, scale, rescale)

    return velocity


def rescale_noise_cfg(guess: Tensor, conditional: Tensor, rescale: float) -> Tensor:
    """Bring the guided prediction's spread back to the conditional one's (Lin et al., 2305.08891, section 3.4).

    rescale 0 changes nothing, 1 matches the standard deviation of each sample (over all its values) fully.
    """
    inner = list(range(1, guess.ndim))
    ratio = conditional.std(dim=inner, keepdim=True) / guess.std(dim=inner, keepdim=True)
    return rescale * (guess * ratio) + (1 - rescale) * guess


def _combine(cond: Tensor, uncond: Tensor, scale: float, rescale: float) -> Tensor:
    cond, uncond = cond.float(), uncond.float()
    guess = uncond + scale * (cond - uncond)
    return rescale_noise_cfg(guess, cond, rescale) if rescale else guess
