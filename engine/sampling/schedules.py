"""Sigma schedules: at which noise levels a solver asks the model, and what timestep it tells it.

Sigma goes from 1 (noise) down to 0 (clean). Every builder takes the number of steps and the flow shift and gives a
`Schedule`. They differ only in details of the public implementations that must be met number for number: where the
line starts, whether the shift is applied twice, whether the timestep is cut to a whole number.
Knows no solver and no model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..contract.errors import OptionError
from ..ops.sigmas import shift_sigma

TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True)
class Schedule:
    """`sigmas` has one value more than there are steps and ends at 0; `timesteps` (0..1000) has one for each step.

    Both are float32 on the CPU. `timesteps` is what the model is told; where the reference cuts it to a whole
    number it is no longer exactly `1000 * sigma`.
    """

    sigmas: Tensor
    timesteps: Tensor

    def __len__(self) -> int:
        return len(self.timesteps)


def wan_unipc_schedule(steps: int, shift: float) -> Schedule:
    """Wan's schedule for UniPC: even steps from 0.999 down to 0, then shifted; whole timesteps.

    The first sigma is the largest of the 1000 training levels counted from 0, hence 0.999 and not 1.
    Source: Wan2.1 `fm_solvers_unipc.py`, facts only.
    """
    _check(steps, shift)
    levels = np.linspace(1, 1 / TRAIN_TIMESTEPS, TRAIN_TIMESTEPS, dtype=np.float64)
    highest = float(np.float32(1.0 - levels[-1]))
    sigmas = shift_sigma(np.linspace(highest, 0.0, steps + 1)[:-1], shift)
    return _schedule(sigmas, np.trunc(sigmas * TRAIN_TIMESTEPS))


def wan_dpm_schedule(steps: int, shift: float) -> Schedule:
    """Wan's schedule for DPM-Solver++: even steps from 1 down to 0, then shifted; whole timesteps.

    Source: Wan2.1 `fm_solvers.py` (its sampling sigmas), facts only.
    """
    _check(steps, shift)
    sigmas = shift_sigma(np.linspace(1.0, 0.0, steps + 1)[:-1], shift)
    return _schedule(sigmas, np.trunc(sigmas * TRAIN_TIMESTEPS))


def linear_schedule(steps: int, shift: float) -> Schedule:
    """Even steps from 1 down to 0, then shifted; exact timesteps. HunyuanVideo's, and Wan's "vanilla"."""
    _check(steps, shift)
    sigmas = shift_sigma(torch.linspace(1, 0, steps + 1, dtype=torch.float32), shift)
    return Schedule(sigmas=sigmas, timesteps=sigmas[:-1] * TRAIN_TIMESTEPS)


def diffusers_schedule(steps: int, shift: float) -> Schedule:
    """diffusers' FlowMatchEuler: even steps between the largest and smallest shifted training level, shifted again."""
    _check(steps, shift)
    ends = shift_sigma(torch.tensor([1.0, TRAIN_TIMESTEPS]) / TRAIN_TIMESTEPS, shift).double().tolist()
    levels = np.linspace(ends[1], ends[0], steps)
    sigmas = shift_sigma(levels, shift).astype(np.float32)
    return _schedule(sigmas, sigmas * np.float32(TRAIN_TIMESTEPS))


def framepack_schedule(steps: int, mu: float) -> Schedule:
    """FramePack's: even steps from 1 down to 0, shifted by e^mu. A fixed flow shift s is mu = ln s."""
    return linear_schedule(steps, math.exp(mu))


def tail(schedule: Schedule, strength: float) -> Schedule:
    """The last `strength` (0..1) of a schedule, rounded down to whole steps, but never less than one step.

    The reference takes the whole schedule where this rounds to no step at all.
    """
    first = len(schedule) - max(1, min(len(schedule), int(len(schedule) * strength)))
    return Schedule(sigmas=schedule.sigmas[first:], timesteps=schedule.timesteps[first:])


def _schedule(sigmas: np.ndarray, timesteps: np.ndarray) -> Schedule:
    with_end = np.append(sigmas, 0.0).astype(np.float32)
    return Schedule(sigmas=torch.from_numpy(with_end), timesteps=torch.from_numpy(timesteps.astype(np.float32)))


def _check(steps: int, shift: float) -> None:
    if steps < 1:
        raise OptionError(f"{steps} sampling steps were asked for.", hint="Give --infer_steps 1 or more.")
    if not (math.isfinite(shift) and shift > 0):
        raise OptionError(f"The flow shift is {shift}.", hint="Give --flow_shift a number above 0, e.g. 5.0.")
