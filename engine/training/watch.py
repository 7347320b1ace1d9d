"""How a training is doing, from its losses: averages, overall and by noise level, and a warning when they rise.

The loss of a single step says little, since the noise level decides most of it. So each tenth of the levels has its own
average, over about the last fifty samples. Knows numbers only; what it remembers is saved with each state.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

LEVELS = 10  # equal parts of sigma 0..1
SAMPLES = 50  # that an average looks back over
EXPLODED, CALM = 2.0, 1.5  # times the lowest average: when to warn, and when to be ready to warn again


def by_level(sigma_B: Tensor, loss_B: Tensor) -> Tensor:
    """[2, LEVELS] on the device of loss_B: the sum of the losses at each level, and how many there are."""
    level_B = (sigma_B * LEVELS).long().clamp(0, LEVELS - 1).to(loss_B.device, non_blocking=True)
    table = torch.zeros(2, LEVELS, device=loss_B.device)
    return table.index_add_(1, level_B, torch.stack([loss_B.float(), torch.ones_like(loss_B, dtype=torch.float32)]))


class Average:
    """An exponential moving average over about the last SAMPLES values, corrected for the bias at the start."""

    def __init__(self, total: float = 0.0, weight: float = 0.0) -> None:
        self.total, self.weight = total, weight

    def add(self, value: float, count: int = 1) -> float:
        """Add `count` values of this mean; returns the average."""
        keep = (1 - 1 / SAMPLES) ** count
        self.total, self.weight = keep * self.total + (1 - keep) * value, keep * self.weight + (1 - keep)
        return self.total / self.weight


class Window:
    """The losses of the latest micro-batches: one epoch's, but at least SAMPLES.

    musubi-tuner averages over the epoch alone, which for a dataset of one clip is just the last loss.
    """

    def __init__(self, batches_per_epoch: int, losses: Iterable[float] = ()) -> None:
        """`losses`: those stored in the state being resumed from."""
        self._epoch = batches_per_epoch
        self._losses = deque(losses, maxlen=max(batches_per_epoch, SAMPLES))

    def extend(self, losses: Iterable[float]) -> None:
        self._losses.extend(losses)

    @property
    def losses(self) -> tuple[float, ...]:
        return tuple(self._losses)

    @property
    def mean(self) -> float:
        """NaN before the first loss, like `epoch_mean`."""
        return _mean(self.losses)

    @property
    def epoch_mean(self) -> float:
        """Over one epoch's micro-batches, however few."""
        return _mean(self.losses[-self._epoch :])


def _mean(losses: Sequence[float]) -> float:
    return sum(losses) / len(losses) if losses else math.nan


class Watch:
    """The losses so far. `stored`: the `state` of the training being resumed."""

    def __init__(self, stored: Mapping[str, Any] | None = None) -> None:
        stored = stored or {}
        self._levels = {int(level): Average(*values) for level, values in stored.get("levels", {}).items()}
        self._loss = Average(*stored.get("loss", ()))
        self._steps: int = stored.get("steps", 0)
        self._lowest: float | None = stored.get("lowest")
        self._warned: bool = stored.get("warned", False)

    def state(self) -> dict[str, Any]:
        """Plain values from which to make the same Watch again."""
        return {
            "levels": {str(level): (average.total, average.weight) for level, average in self._levels.items()},
            "loss": (self._loss.total, self._loss.weight),
            "steps": self._steps,
            "lowest": self._lowest,
            "warned": self._warned,
        }

    def add_levels(self, sums: list[float], counts: list[float]) -> dict[str, float]:
        """Add a result of `by_level`; returns the averages of the levels it touched, by metric name."""
        values = {}
        for level, (total, count) in enumerate(zip(sums, counts, strict=True)):
            if count:
                average = self._levels.setdefault(level, Average())
                values[f"loss/sigma_{level / LEVELS:.1f}"] = average.add(total / count, int(count))
        return values

    def add_loss(self, loss: float) -> str:
        """Add the loss of a step; returns a warning when one is due, else ""."""
        average = self._loss.add(loss)
        self._steps += 1
        if self._steps < SAMPLES:
            return ""
        lowest = self._lowest = average if self._lowest is None else min(self._lowest, average)
        if self._warned:
            self._warned = average > CALM * lowest
            return ""
        self._warned = average > EXPLODED * lowest
        if not self._warned:
            return ""
        return (
            f"The average loss has risen to {average:.4g}, {average / lowest:.1f} times its lowest ({lowest:.4g}): the "
            "training may be falling apart. A lower --learning_rate is the usual cure; what was saved before is still "
            "good."
        )
