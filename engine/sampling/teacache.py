"""TeaCache: steps are left out by how the timestep changes what goes into the blocks (Liu et al., 2411.19108).

The relative change of that input from step to step says, through a polynomial that was fitted to the model, how much
its output changes; a step is left out while the sum of these since one ran stays below a threshold. The input is
whatever the family hands over: HunyuanVideo's authors' numbers are for the modulated tokens, Wan's for the time's
embedding alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .step_caches import Stack, Walk, listed, relative_change

DEGREE = 4  # of the published polynomials


class TeaCache:
    """See above. In each step that may be left out one number is read from the device."""

    name = "TeaCache"

    def __init__(self, coefficients: Sequence[Sequence[float]], *, threshold: float):
        """`coefficients`: highest power first; a polynomial for each expert, the one for the least noise last."""
        self._coefficients, self._threshold = coefficients, threshold
        self._expert = 0
        self._before: Tensor | None = None
        self._now: Tensor | None = None
        self._sum = 0.0

    def look(self, stack: Stack, walk: Walk) -> Tensor:
        self._before, self._now = self._now, stack.modulated()
        self._expert = walk.expert
        return stack.tokens_BLD

    def finds_little_change(self) -> bool:
        assert self._now is not None and self._before is not None, "only a first step has none before it"
        change = float(relative_change(self._now, self._before))
        self._sum += polynomial(self._coefficients[-1 - self._expert], change)
        return self._sum < self._threshold

    def runs(self) -> None:
        self._sum = 0.0

    def forget(self) -> None:
        self._before = self._now = None
        self._sum = 0.0


def polynomial(coefficients: Sequence[float], x: float) -> float:
    """Its value, by Horner's rule; highest power first."""
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value


def fit(changes: Sequence[float], outcomes: Sequence[float], *, degree: int = DEGREE) -> list[float]:
    """The polynomial, highest power first, that gives `outcomes` of `changes` with the least squares; of a lower degree
    where there are fewer values. Powers are of changes in units of the largest, so that they are told apart."""
    degree = min(degree, len(set(changes)) - 1)
    if degree < 0:
        return [0.0]
    unit = max(map(abs, changes)) or 1.0
    x = torch.tensor(changes, dtype=torch.float64) / unit
    powers = torch.stack([x**power for power in range(degree, -1, -1)], dim=1)
    found = torch.linalg.lstsq(powers, torch.tensor(outcomes, dtype=torch.float64).unsqueeze(1)).solution
    return [value / unit**power for value, power in zip(found.flatten().tolist(), range(degree, -1, -1), strict=True)]


class CoefficientCalibration:
    """Runs the blocks in every step, and measures how input and output change from one step to the next."""

    def __init__(self, walk: Walk, *, flag: str = "--step_cache_coefficients"):
        self._walk, self._flag = walk, flag
        self._seen: tuple[int, int] | None = None
        self.calls = 0
        self._last: tuple[Tensor, Tensor] | None = None
        self._expert: int | None = None
        self._measured: list[list[Tensor]] = []  # an expert each

    def __call__(self, stack: Stack) -> Tensor:
        """The tokens after the blocks."""
        self.calls += 1
        entered = stack.modulated()
        after_BLD = stack.run()
        if self._walk.follows(self._seen) and self._last is not None:
            changes = [relative_change(entered, self._last[0]), relative_change(after_BLD, self._last[1])]
            self._measured[-1].append(torch.stack(changes))
        elif self._expert != self._walk.expert:
            self._measured.append([])
        self._expert = self._walk.expert
        self._last, self._seen = (entered, after_BLD.clone()), self._walk.now
        return after_BLD

    def report(self) -> list[str]:
        """The coefficients as the flag takes them, and the two changes that they were fitted to, step by step."""
        found = [torch.stack(one).T.tolist() if one else ([], []) for one in self._measured]
        fitted = ";".join(listed(fit(changes, outcomes), ".6g") for changes, outcomes in found)
        return [
            f"{self._flag} {fitted}",
            f"change of what goes into the blocks: {';'.join(listed(changes) for changes, _ in found)}",
            f"change of what comes out of them: {';'.join(listed(outcomes) for _, outcomes in found)}",
        ]
