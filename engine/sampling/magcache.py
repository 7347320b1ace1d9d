"""MagCache: steps in which the DiT's blocks are left out (Ma et al., "MagCache", 2506.09045).

What the blocks add to the tokens, their residual, hardly turns from one step to the next, and its magnitude changes by
a ratio that belongs to the model and hardly to the prompt. So the ratios are measured once (`Calibration`), and from
them alone it follows, before anything runs, in which steps the residual of an earlier one will do (`skipped_steps`).

Both classes wrap the block stack: called with the tokens that go into the blocks and a function that runs these, they
give the tokens that come out. One object serves one conditioning on one walk through the noise, so conditional and
unconditional predictions never share a residual and a section never begins with another's (musubi-tuner counts and
keeps them together). A batch that holds both predictions is one conditioning: every row has its own residual.
Knows no model and no ratios of one. Given up: scaling an old residual by the ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Run = Callable[[], Tensor]


def skipped_steps(
    ratios: Sequence[float], *, steps: int, retention_ratio: float, threshold: float, most_in_a_row: int
) -> list[bool]:
    """For each of `steps` whether its blocks are left out.

    `ratios`: the residual's magnitude in units of the step before, for any number of steps. The first
    `retention_ratio` of the steps (one at least) and the last one always run. Others are left out while the error,
    the sum over the steps of |1 - product of the ratios since a step ran|, is at most `threshold`.
    """
    first = max(int(retention_ratio * steps), 1)
    skipped, product, error, in_a_row = [False] * steps, 1.0, 0.0, 0
    for step, ratio in list(enumerate(spread(ratios, steps)))[first : steps - 1]:
        product, in_a_row = product * ratio, in_a_row + 1
        error += abs(1 - product)
        skipped[step] = error <= threshold and in_a_row <= most_in_a_row
        if not skipped[step]:
            product, error, in_a_row = 1.0, 0.0, 0
    return skipped


def spread(ratios: Sequence[float], count: int) -> list[float]:
    """`count` of the ratios, evenly spread from the first to the last, repeated where there are fewer."""
    if count == 1:
        return [ratios[-1]]
    return [ratios[round(place * (len(ratios) - 1) / (count - 1))] for place in range(count)]


class MagCache:
    """Leaves the blocks out in the steps that `skipped` names; the first one of a walk is never among them."""

    def __init__(self, skipped: Sequence[bool]):
        self._skipped = iter(skipped)
        self._residual: Tensor | None = None

    def __call__(self, before_BLD: Tensor, run: Run) -> Tensor:
        """The tokens after the blocks, by running them or by what they added last."""
        if next(self._skipped, False) and self._residual is not None:
            return before_BLD + self._residual
        after_BLD = run()
        self._residual = after_BLD - before_BLD
        return after_BLD


class Calibration:
    """Runs the blocks in every step, and measures how their residual changes from one step to the next."""

    def __init__(self) -> None:
        self._residual: Tensor | None = None
        self._measured: list[Tensor] = []

    def __call__(self, before_BLD: Tensor, run: Run) -> Tensor:
        """The tokens after the blocks."""
        after_BLD = run()
        residual = (after_BLD - before_BLD).float()
        if self._residual is not None:
            ratio_BL = residual.norm(dim=-1) / self._residual.norm(dim=-1)
            cosine_BL = torch.cosine_similarity(residual, self._residual, dim=-1)
            self._measured.append(torch.stack([ratio_BL.mean(), ratio_BL.std(), 1 - cosine_BL.mean()]))
        self._residual = residual
        return after_BLD

    def report(self) -> list[str]:
        """Three lines: the ratios as --magcache_mag_ratios takes them (that of the first step is 1 by definition), how
        much tokens differ in them (standard deviation), and how far the residual turns (1 - cosine)."""
        ratios, spreads, turns = torch.stack(self._measured).T.tolist() if self._measured else ([], [], [])
        return [
            f"--magcache_mag_ratios {_listed([1.0, *ratios])}",
            f"standard deviation of the ratios among tokens: {_listed(spreads)}",
            f"1 - cosine of a step's residual and the one before: {_listed(turns)}",
        ]


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:.5f}" for value in values)
