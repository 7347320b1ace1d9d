"""What the losses of one optimizer step come to, whichever process had them.

They are added up where they arise: only `take` waits for the device, once a step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .group import Group
from .micro_batch import Drawn
from .watch import LEVELS, by_level


class Measured(NamedTuple):
    """Of one step. `losses`: of each micro-batch. `level_sums`, `level_counts`: of its samples at each noise level.

    `error` is the mean over its samples without their weights, `idle` what answering zero would have cost.
    """

    losses: list[float]
    gradient_norm: float
    level_sums: list[float]
    level_counts: list[float]
    error: float
    idle: float


class Tally:
    """Adds up micro-batches, from `clear` on."""

    def __init__(self, device: torch.device) -> None:
        self._losses: dict[int, Tensor] = {}
        self._levels = torch.zeros(2, LEVELS, device=device)
        self._errors = torch.zeros(2, device=device)

    def clear(self) -> None:
        """Begin a step."""
        self._losses.clear()
        self._levels.zero_()
        self._errors.zero_()

    def add(self, number: int, drawn: Drawn) -> Tensor:
        """Take in micro-batch `number` of the step, and return its loss, which has a gradient."""
        loss = drawn.error_BCTHW.mean()
        self._losses[number] = loss.detach().float()
        self._levels += by_level(drawn.sigma_B, drawn.error_BCTHW.detach().flatten(1).mean(1))
        self._errors += torch.stack([drawn.plain_B.sum(), drawn.idle_B.sum()])
        return loss

    def take(self, group: Group, norm: Tensor, *, count: int) -> Measured:
        """The step's `count` micro-batches of all processes, the same in each. `norm` of the gradients is theirs."""
        values = torch.zeros(count, device=self._levels.device)
        for number, loss in self._losses.items():
            values[number] = loss
        group.add_up([values, self._levels, self._errors])
        norm = norm.detach().float().view(1).to(values.device)
        gradient_norm, error, idle, *rest = torch.cat([norm, self._errors, values, self._levels.flatten()]).tolist()
        losses, sums, counts = rest[:count], rest[count : count + LEVELS], rest[count + LEVELS :]
        return Measured(losses, gradient_norm, sums, counts, error / sum(counts), idle / sum(counts))
