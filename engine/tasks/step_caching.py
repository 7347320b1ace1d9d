"""The step caches of one walk through the noise: made for each prediction, told each step, asked for a report.

Knows which class is which method, and no family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..families.values import StepCache as StepCacheCall
from ..parts.step_caching import StepCacheSettings
from ..sampling.first_block import ChangeCalibration, FirstBlock
from ..sampling.magcache import MagCache, RatioCalibration
from ..sampling.step_caches import Method, StepCache, Walk
from ..sampling.teacache import CoefficientCalibration, TeaCache

Measuring = RatioCalibration | CoefficientCalibration | ChangeCalibration

METHODS: dict[str, Callable[[StepCacheSettings], Method]] = {
    "magcache": lambda how: MagCache(how.numbers, threshold=how.threshold),
    "teacache": lambda how: TeaCache(how.numbers, threshold=how.threshold),
    "first_block": lambda how: FirstBlock(threshold=how.threshold),
}
CALIBRATIONS: dict[str, Callable[[StepCacheSettings, Walk], Measuring]] = {
    "magcache": lambda how, walk: RatioCalibration(walk, flag=how.ratios_flag),
    "teacache": lambda how, walk: CoefficientCalibration(walk),
    "first_block": lambda how, walk: ChangeCalibration(walk),
}


class StepCaches:
    """Those of one walk, by what they are for ("conditional")."""

    def __init__(self) -> None:
        self.walk = Walk()
        self._caches: dict[str, StepCache | Measuring] = {}

    def make(self, how: StepCacheSettings, *, label: str) -> StepCacheCall:
        """One more, for the walk that comes next."""
        cache: StepCache | Measuring
        if how.calibrate:
            cache = CALIBRATIONS[how.method](how, self.walk)
        else:
            method = METHODS[how.method](how)
            cache = StepCache(method, self.walk, start=how.start, most_in_a_row=how.most_in_a_row)
        self._caches[label] = cache
        return cache

    def begin(self, experts: Sequence[int], *, first: int) -> None:
        """The walk begins; see Walk."""
        self.walk.begin(experts, first=first)

    def finish(self) -> list[str]:
        """Lines for the log, of the caches that were used; they are forgotten, and the next walk has others."""
        told = [f"{label}: {line}" for label, cache in self._caches.items() if cache.calls for line in cache.report()]
        self._caches, self.walk = {}, Walk()
        return told
