"""The clock of a training that has minutes instead of steps: learning rate, status lines, saving, averaged weights.

A stage gets a number of minutes altogether; stopped and taken up again, it has what is left of them. So the schedule
always ends when the time does, on whatever machine. Files are written to a temporary name and renamed.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.contract.files import whole_file

_TELL_S, _SAVE_S = 5.0, 180.0


def say(line: str) -> None:
    """One line for the person, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Pace:
    """How far a stage is. `spent_s` is what earlier runs have used, `steps` what they did.

    `agree` makes one clock of those of several processes: all take the same steps at the same rates.
    """

    def __init__(
        self,
        name: str,
        minutes: float,
        *,
        spent_s: float = 0.0,
        steps: int = 0,
        agree: Callable[[float], float] = float,
    ) -> None:
        self.name, self.total_s, self.steps = name, 60.0 * minutes, steps
        self._spent_s, self._begun = spent_s, time.monotonic()
        self._agree, self._step_s = agree, spent_s  # _step_s: the time at which the step began
        self._told = self._saved = self._begun
        self._told_steps = steps

    @property
    def spent_s(self) -> float:
        return self._spent_s + time.monotonic() - self._begun

    @property
    def progress(self) -> float:
        """0 at the beginning, 1 when the minutes are over."""
        return min(1.0, self._step_s / self.total_s)

    def running(self) -> Iterator[int]:
        """Step numbers from where the stage stands, until its time is over."""
        while (step_s := self._agree(self.spent_s)) < self.total_s:
            self._step_s = step_s
            yield self.steps
            self.steps += 1

    def rate(self, peak: float, *, warm_up_steps: int) -> float:
        """The learning rate now: a linear rise, then half a cosine down to a hundredth at the end."""
        falling = 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * self.progress))
        return peak * falling * min(1.0, (self.steps + 1) / warm_up_steps)

    def time_to_tell(self) -> float | None:
        """Steps a second since the last time, every five seconds; None in between."""
        now = time.monotonic()
        if now - self._told < _TELL_S:
            return None
        speed = (self.steps + 1 - self._told_steps) / (now - self._told)
        self._told, self._told_steps = now, self.steps + 1
        return speed

    def time_to_save(self) -> bool:
        """True every three minutes."""
        now = time.monotonic()
        if now - self._saved < _SAVE_S:
            return False
        self._saved = now
        return True

    def tell(self, speed: float, words: str) -> None:
        clock = f"{self.spent_s:6.1f}/{self.total_s:.0f} s"
        say(f"{self.name}  {clock}  step {self.steps:6d}  {speed:6.2f} steps/s  {words}")


class Average:
    """Exponential moving average of weights, float32, on their device. It follows faster at the beginning."""

    def __init__(self, weights: Iterable[Tensor], *, decay: float) -> None:
        self._weights = list(weights)
        self.decay, self.values = decay, [weight.detach().clone() for weight in self._weights]

    @torch.no_grad()
    def follow(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [weight.detach() for weight in self._weights], 1.0 - decay)

    @torch.no_grad()
    def load(self, values: Iterable[Tensor]) -> None:
        for own, value in zip(self.values, values, strict=True):
            own.copy_(value)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Everything that a stage needs to go on."""
    with whole_file(path) as temporary, temporary.open("wb") as stream:
        torch.save(state, stream)


def load_state(path: Path, *, device: torch.device) -> dict[str, Any] | None:
    """What `save_state` wrote; None where nothing is."""
    return torch.load(path, map_location=device, weights_only=True) if path.exists() else None
