"""First-block cache: the first block runs in every step, and tells whether the others would add anything new.

Its residual is compared with that of the last step that was run in full; while it differs by less than a threshold
(mean absolute difference in units of the mean magnitude), the residual of the rest stands in for the rest. It needs no
numbers of the model. Source: ParaAttention's description of its First Block Cache, as diffusers has it too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .step_caches import Stack, Walk, listed, relative_change


class FirstBlock:
    """See above. In each step that may be left out one number is read from the device."""

    name = "First-block cache"

    def __init__(self, *, threshold: float):
        self._threshold = threshold
        self._now_BLD: Tensor | None = None
        self._full_BLD: Tensor | None = None

    def look(self, stack: Stack, walk: Walk) -> Tensor:
        before_BLD = stack.tokens_BLD
        after_BLD = stack.run(1).clone()  # of a CUDA graph, what the first block gives is gone once others have run
        self._now_BLD = after_BLD - before_BLD
        return after_BLD

    def finds_little_change(self) -> bool:
        assert self._now_BLD is not None and self._full_BLD is not None, "only a first step has none before it"
        little = float(relative_change(self._now_BLD, self._full_BLD)) < self._threshold
        if little:
            self._now_BLD = None  # not compared with again: its memory is free while other predictions run
        return little

    def runs(self) -> None:
        self._full_BLD = self._now_BLD

    def forget(self) -> None:
        self._now_BLD = self._full_BLD = None


class ChangeCalibration:
    """Runs the blocks in every step, and measures how the first one's residual changes from one step to the next."""

    def __init__(self, walk: Walk):
        self._walk = walk
        self._seen: tuple[int, int] | None = None
        self.calls = 0
        self._residual_BLD: Tensor | None = None
        self._measured: list[Tensor] = []

    def __call__(self, stack: Stack) -> Tensor:
        """The tokens after the blocks."""
        self.calls += 1
        before_BLD = stack.tokens_BLD
        residual_BLD = stack.run(1) - before_BLD
        if self._walk.follows(self._seen) and self._residual_BLD is not None:
            self._measured.append(relative_change(residual_BLD, self._residual_BLD))
        self._residual_BLD, self._seen = residual_BLD, self._walk.now
        return stack.run()

    def report(self) -> list[str]:
        """The threshold that every other step stays below, and the changes, step by step."""
        if not self._measured:
            return ["the walk is too short to measure a change"]
        changes = torch.stack(self._measured)
        return [
            f"--step_cache_threshold {float(changes.quantile(0.5)):.5f}",
            f"change of what the first block adds: {listed(changes.tolist())}",
        ]
