"""Step caches: steps of a walk through the noise in which most of the DiT's blocks are left out.

What the blocks add to the tokens, their residual, changes little from one step to the next. `StepCache` adds an older
one where a `Method` finds the change small, and keeps the rules that all methods share: the first steps and the last
one always run, and only so many are left out in a row. One object serves one conditioning on one walk, so conditional
and unconditional predictions never share a residual. A batch that holds both is one conditioning: every row has its own
residual, all rows one verdict. Where a prediction was not asked for in the step before, or another expert has taken
over, it begins anew.

Knows no model: a stack of blocks is handed in at every call. Given up: predicting how a residual goes on (TaylorSeer),
which keeps several of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Stack(Protocol):
    """The blocks of one step (parts/block_stack.py)."""

    tokens_BLD: Tensor
    """Those of the video, as far as they have come."""

    def modulated(self) -> Tensor:
        """What the timestep makes of the input of the first block."""

    def run(self, count: int | None = None) -> Tensor:
        """Run so many more blocks, None: all that are left, and give the tokens."""


class Walk:
    """Where a walk through the noise is. Its caches look at it, and whoever walks tells it each step."""

    def __init__(self, experts: Sequence[int] = (), *, first: int = 0):
        self.begin(experts, first=first)

    def begin(self, experts: Sequence[int], *, first: int = 0) -> None:
        """`experts`: the number of the one at work in each step of the whole schedule; 0 is that for the least noise.
        `first`: the step with which this walk begins."""
        self._experts, self._first = list(experts), first
        self.step = first

    def go_to(self, index: int) -> None:
        """The walk's step `index`, counted from 0, comes next."""
        self.step = self._first + index

    @property
    def expert(self) -> int:
        return self._experts[self.step]

    @property
    def steps(self) -> int:
        """How many are walked."""
        return len(self._experts) - self._first

    @property
    def place(self) -> tuple[int, int]:
        """(which one of the expert's steps in the whole schedule this is, counted from 0; how many those are)."""
        began = self._experts.index(self.expert)
        return self.step - began, self._experts.count(self.expert)

    def in_start(self, share: float) -> bool:
        """Whether this is one of the first `share` of the steps that the expert walks, or the first one of all."""
        index, count = self.place
        left_out = max(0, self._first - (self.step - index))
        return index - left_out < max(1, int(share * (count - left_out)))

    @property
    def at_end(self) -> bool:
        return self.step == len(self._experts) - 1

    def follows(self, seen: tuple[int, int] | None) -> bool:
        """Whether the step before, of the same expert, is the one that was `seen`: (step, expert)."""
        return seen == (self.step - 1, self.expert)

    @property
    def now(self) -> tuple[int, int]:
        """For `follows`."""
        return self.step, self.expert


class Method(Protocol):
    """What finds out whether a step may be left out."""

    name: str

    def look(self, stack: Stack, walk: Walk) -> Tensor:
        """Look at this step, and give the tokens that a kept residual is added to. May run some blocks for it."""

    def finds_little_change(self) -> bool:
        """Whether what the last full run added will do in the step that was looked at. At most one wait for the device.

        Asked only where no rule wants the step run.
        """

    def runs(self) -> None:
        """The step that was looked at is run in full."""

    def forget(self) -> None:
        """Begin anew."""


class StepCache:
    """Wraps the block stack of one conditioning: called with it, gives the tokens after the blocks."""

    def __init__(self, method: Method, walk: Walk, *, start: float, most_in_a_row: int):
        """`start`: share of an expert's steps, at their beginning, that always run (one at least)."""
        self._method, self._walk, self._start, self._most = method, walk, start, most_in_a_row
        self._residual_BLD: Tensor | None = None
        self._seen: tuple[int, int] | None = None
        self._in_a_row = 0
        self.calls = self.left_out = 0

    def __call__(self, stack: Stack) -> Tensor:
        """The tokens after the blocks, by running them or by what they added when they ran last."""
        if not self._walk.follows(self._seen):
            self._residual_BLD, self._in_a_row = None, 0
            self._method.forget()
        self._seen = self._walk.now
        self.calls += 1
        before_BLD = self._method.look(stack, self._walk)
        if self._residual_BLD is not None and self._may_skip() and self._method.finds_little_change():
            self._in_a_row += 1
            self.left_out += 1
            return before_BLD + self._residual_BLD
        self._method.runs()
        self._residual_BLD, self._in_a_row = None, 0  # its memory is free while the blocks run
        after_BLD = stack.run()
        self._residual_BLD = after_BLD - before_BLD
        return after_BLD

    def _may_skip(self) -> bool:
        return not (self._walk.in_start(self._start) or self._walk.at_end) and self._in_a_row < self._most

    def report(self) -> list[str]:
        """What was saved, for the log."""
        return [f"{self._method.name}: the blocks were left out in {self.left_out} of {self.calls} steps."]


def relative_change(now: Tensor, before: Tensor) -> Tensor:
    """Mean absolute difference in units of the mean magnitude before, a float32 scalar on the device."""
    difference = (now - before).abs().mean(dtype=torch.float32)
    return difference / before.abs().mean(dtype=torch.float32)


def listed(values: Sequence[float], digits: str = ".5f") -> str:
    """As options take them."""
    return ",".join(f"{value:{digits}}" for value in values)
