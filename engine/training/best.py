"""Which step of a training had the lowest validation loss, for `--save_best_validation`.

Goes through states, so that a training that goes on compares with what it had before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class Best:
    """The step and its loss. `stored`: what `state()` gave before an interruption.

    `measure` is the same where losses compare: same clips, levels, and noise. What was measured otherwise is forgotten
    with the first loss that is kept.
    """

    def __init__(self, stored: Mapping[str, Any], *, measure: str) -> None:
        self._found, self._measure = dict(stored), measure

    @property
    def outdated(self) -> bool:
        """Whether it was measured otherwise."""
        return bool(self._found) and self._found["measure"] != self._measure

    @property
    def step(self) -> int | None:
        """0: nothing was lower than before the first step; None: there is none to compare with."""
        return None if self.outdated else self._found.get("step")

    @property
    def loss(self) -> float:
        """Infinite where there is none to compare with."""
        return math.inf if self.step is None else float(self._found["loss"])

    def keep(self, loss: float, step: int) -> None:
        """From now on this is the best."""
        self._found = {"step": step, "loss": loss, "measure": self._measure}

    def state(self) -> dict[str, Any]:
        """For a state folder, as JSON values."""
        return dict(self._found)
