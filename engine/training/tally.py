"""Adds up the losses of one optimizer step, over all processes.

Sums are kept on the device; only `take` waits for it, once per step.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .group import Group
from .micro_batch import Drawn
from .watch import LEVELS, by_level


class Measured(NamedTuple):
    """One step's figures. `losses`: one per micro-batch. `level_sums`, `level_counts`: loss by tenth of sigma
    (watch.py).

    `error`: the unweighted mean over samples; `idle`: what answering zero would have scored (`Drawn`). `strayed`: the
    mean over micro-batches of prior preservation, NaN without any.
    """

    losses: list[float]
    gradient_norm: float
    level_sums: list[float]
    level_counts: list[float]
    error: float
    idle: float
    strayed: float


class Tally:
    """Sums over the micro-batches since `clear`."""

    def __init__(self, device: torch.device) -> None:
        self._losses: dict[int, Tensor] = {}
        self._levels = torch.zeros(2, LEVELS, device=device)
        self._errors = torch.zeros(2, device=device)
        self._strayed = torch.zeros(2, device=device)  # sum and number of micro-batches

    def clear(self) -> None:
        """Start a step."""
        self._losses.clear()
        self._levels.zero_()
        self._errors.zero_()
        self._strayed.zero_()

    def add(self, number: int, drawn: Drawn) -> Tensor:
        """Add micro-batch `number` of the step; returns its loss, which has a gradient."""
        self._losses[number] = drawn.error_B.mean().float() + 0 * drawn.loss.detach().float()  # NaN if the loss is
        self._levels += by_level(drawn.sigma_B, drawn.error_B)
        self._errors += torch.stack([drawn.plain_B.sum(), drawn.idle_B.sum()])
        if drawn.strayed is not None:
            self._strayed += torch.stack([drawn.strayed, torch.ones_like(drawn.strayed)])
        return drawn.loss

    def take(self, group: Group, norm: Tensor, *, count: int) -> Measured:
        """The figures of the step's `count` micro-batches, the same in all processes. `norm`: of the summed
        gradients."""
        values = torch.zeros(count, device=self._levels.device)
        for number, loss in self._losses.items():
            values[number] = loss
        group.add_up([values, self._levels, self._errors, self._strayed])
        norm = norm.detach().float().view(1).to(values.device)
        told = torch.cat([norm, self._errors, self._strayed, values, self._levels.flatten()]).tolist()
        gradient_norm, error, idle, strayed, straying, *rest = told
        losses, sums, counts = rest[:count], rest[count : count + LEVELS], rest[count + LEVELS :]
        return Measured(
            losses=losses,
            gradient_norm=gradient_norm,
            level_sums=sums,
            level_counts=counts,
            error=error / sum(counts),
            idle=idle / sum(counts),
            strayed=strayed / straying if straying else math.nan,
        )
