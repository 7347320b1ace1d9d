"""Guidance as wrappers around a velocity: classifier-free (Ho & Salimans, 2207.12598) and by skipped layers.

A wrapper takes velocities and gives one back; solvers never know. What differs from step to step is a list of
velocities, one a step, which `in_turn` makes into one. Knows no model: "with layers left out" is one more velocity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


def layer_guided(
    conditional: Velocity, unconditional: Velocity | None, skipped: Velocity, scale: float, *, layer_scale: float
) -> Velocity:
    """Skip layer guidance: what `guided` gives, plus layer_scale·(cond − skipped).

    `skipped` is the unconditional velocity with some layers left out. Source: Stable Diffusion 3.5's, in musubi-tuner
    `--slg_mode original`.
    """
    if scale != 1 and unconditional is None:
        raise ValueError("guidance with a scale other than 1 needs an unconditional velocity")

    def velocity(x: Tensor, timestep_B: Tensor) -> Tensor:
        cond = conditional(x, timestep_B).float()
        guess = cond
        if scale != 1 and unconditional is not None:
            guess = _combine(cond, unconditional(x, timestep_B), scale, 0.0)
        return guess + layer_scale * (cond - skipped(x, timestep_B).float())

    return velocity


def in_turn(each: Sequence[Velocity]) -> Velocity:
    """The velocities one after the other, a step each. For one walk through a schedule: solvers ask once a step."""
    following = iter(each)

    def velocity(x: Tensor, timestep_B: Tensor) -> Tensor:
        return next(following)(x, timestep_B)

    return velocity


# ------------------------------------------------------------------------------------------- along the steps


@dataclass(frozen=True, kw_only=True)
class GuidancePlan:
    """In which steps guidance acts, and in which layers are skipped; the fields are the options of the same names."""

    cfg_skip_mode: str = "none"
    cfg_apply_ratio: float | None = None
    slg_mode: str | None = None
    slg_scale: float = 3.0
    slg_start: float = 0.0
    slg_end: float = 0.3

    def guided_steps(self, steps: int) -> list[bool]:
        """For each of `steps`, whether it is guided."""
        if self.cfg_apply_ratio is None:
            return [True] * steps
        return guided_steps(self.cfg_skip_mode, self.cfg_apply_ratio, steps)

    def layer_steps(self, steps: int) -> range:
        """The steps with skip layer guidance, where they are guided at all."""
        return range(_whole(self.slg_start * steps), _whole(self.slg_end * steps)) if self.slg_mode else range(0)


def guided_steps(mode: str, share: float, steps: int) -> list[bool]:
    """Which of `steps` are guided when a `share` of them (0..1, rounded down to whole steps) shall be.

    The modes say where guidance is left out: "early", "late", "middle", "early_late" (both ends), "alternate" (spread
    over all), "none" (nowhere). Source: musubi-tuner's --cfg_skip_mode.
    """
    count = _whole(share * steps)
    if mode == "none":
        return [True] * steps
    if mode == "alternate":
        return [_whole(share * (index + 1)) > _whole(share * index) for index in range(steps)]
    if mode == "middle":
        return [index < count // 2 or index >= count // 2 + steps - count for index in range(steps)]
    first = {"early": steps - count, "late": 0, "early_late": (steps - count) // 2}[mode]
    return [first <= index < first + count for index in range(steps)]


def _whole(value: float) -> int:
    """Rounded down, but 28.999999999999996 is 29: what a decimal share of the steps means."""
    return math.floor(value + 1e-9)


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The model under each conditioning that guidance mixes; what is not there is not needed."""

    conditional: Velocity
    unconditional: Velocity | None = None
    both: Velocity | None = None
    """Conditional and unconditional in one call of twice the batch size, in place of two calls."""
    skipped: Velocity | None = None
    """The unconditional one with layers left out."""


def guided_along(
    plan: GuidancePlan, models: Predictions, scales: Sequence[float], *, rescale: float = 0.0
) -> list[Velocity]:
    """The velocity of each step. `scales` has the guidance scale of each, which experts may make differ."""
    guided_at, layers_at = plan.guided_steps(len(scales)), plan.layer_steps(len(scales))
    velocities = []
    for index, scale in enumerate(scales):
        if not guided_at[index]:
            velocity = models.conditional
        elif models.skipped is not None and index in layers_at and plan.slg_mode == "uncond":
            velocity = guided(models.conditional, models.skipped, scale, rescale=rescale)
        elif models.skipped is not None and index in layers_at:
            velocity = layer_guided(
                models.conditional, models.unconditional, models.skipped, scale, layer_scale=plan.slg_scale
            )
        elif models.both is not None and scale != 1:
            velocity = guided_batch(models.both, scale, rescale=rescale)
        else:
            velocity = guided(models.conditional, models.unconditional, scale, rescale=rescale)
        velocities.append(velocity)
    return velocities


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
