"""MagCache: steps are left out by ratios that were measured before (Ma et al., "MagCache", 2506.09045).

What the blocks add to the tokens, their residual, hardly turns from one step to the next, and its magnitude changes by
a ratio that belongs to the model and hardly to the prompt. So the ratios are measured once (`RatioCalibration`), and
the decision needs nothing of the step: no device is waited for. Given up: scaling an old residual by the ratio.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .step_caches import Stack, Walk, listed


def spread(ratios: Sequence[float], count: int) -> list[float]:
    """`count` of the ratios, evenly spread from the first to the last, repeated where there are fewer."""
    if count == 1:
        return [ratios[-1]]
    return [ratios[round(place * (len(ratios) - 1) / (count - 1))] for place in range(count)]


class MagCache:
    """A step is left out while the error, the sum over the steps since one ran of |1 - product of the ratios since
    then|, is at most the threshold."""

    name = "MagCache"

    def __init__(self, ratios: Sequence[Sequence[float]], *, threshold: float):
        """`ratios`: the residual's magnitude in units of the step before, for any number of steps; a list for each
        expert, the one for the least noise last."""
        self._ratios, self._threshold = ratios, threshold
        self._ratio = 1.0
        self.forget()

    def look(self, stack: Stack, walk: Walk) -> Tensor:
        place, count = walk.place
        self._ratio = spread(self._ratios[-1 - walk.expert], count)[place]
        return stack.tokens_BLD

    def finds_little_change(self) -> bool:
        self._product *= self._ratio
        self._error += abs(1 - self._product)
        return self._error <= self._threshold

    def runs(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._product, self._error = 1.0, 0.0


class RatioCalibration:
    """Runs the blocks in every step, and measures how their residual changes from one step to the next."""

    def __init__(self, walk: Walk, *, flag: str = "--step_cache_ratios"):
        """`flag` takes what is measured."""
        self._walk, self._flag = walk, flag
        self._seen: tuple[int, int] | None = None
        self.calls = 0
        self._residual_BLD: Tensor | None = None
        self._expert: int | None = None
        self._measured: list[tuple[int, list[Tensor]]] = []  # an expert each: the step that it begins with, ratios

    def __call__(self, stack: Stack) -> Tensor:
        """The tokens after the blocks."""
        self.calls += 1
        before_BLD = stack.tokens_BLD
        after_BLD = stack.run()
        residual_BLD = (after_BLD - before_BLD).float()
        if self._walk.follows(self._seen) and self._residual_BLD is not None:
            ratio_BL = residual_BLD.norm(dim=-1) / self._residual_BLD.norm(dim=-1)
            cosine_BL = torch.cosine_similarity(residual_BLD, self._residual_BLD, dim=-1)
            self._measured[-1][1].append(torch.stack([ratio_BL.mean(), ratio_BL.std(), 1 - cosine_BL.mean()]))
        elif self._expert != self._walk.expert:
            self._measured.append((self._walk.place[0], []))
        self._expert = self._walk.expert
        self._residual_BLD, self._seen = residual_BLD, self._walk.now
        return after_BLD

    def report(self) -> list[str]:
        """Three lines: the ratios as the flag takes them (1 for the first step by definition, and for steps before it,
        which were not walked), how much tokens differ in them (standard deviation), and how far the residual turns (1 -
        cosine)."""
        found = [torch.stack(one).T.tolist() if one else ([], [], []) for _, one in self._measured]
        ratios, spreads, turns = ([one[row] for one in found] for row in range(3))
        begun = [first for first, _ in self._measured]
        whole = [[*[1.0] * (first + 1), *one] for first, one in zip(begun, ratios, strict=True)]
        return [
            f"{self._flag} {_experts(whole)}",
            f"standard deviation of the ratios among tokens: {_experts(spreads)}",
            f"1 - cosine of a step's residual and the one before: {_experts(turns)}",
        ]


def _experts(lists: Sequence[Sequence[float]]) -> str:
    return ";".join(listed(one) for one in lists)
