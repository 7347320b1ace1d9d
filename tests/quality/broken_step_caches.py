"""Step caches with one fault each, to show that the guard of the right one can fail.

Each is right but for one place: which steps are left out, or which residual stands in for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.parts.step_caching import StepCacheSettings
from engine.sampling.first_block import FirstBlock
from engine.sampling.magcache import MagCache
from engine.sampling.step_caches import Method, Stack, StepCache, Walk
from engine.sampling.teacache import TeaCache


@dataclass(frozen=True)
class Parts:
    """What engine/tasks/step_caching.py makes step caches of; `method` None: the right one."""

    cache: type[StepCache] = StepCache
    method: Callable[[StepCacheSettings], Method] | None = None


RIGHT = Parts()

# ------------------------------------------------------------------------------------------------------- which steps


def _ratios_ignored(how: StepCacheSettings) -> MagCache:
    return MagCache([[1.0 for _ in one] for one in how.numbers], threshold=how.threshold)


def _polynomial_ignored(how: StepCacheSettings) -> TeaCache:
    return TeaCache([[1.0, 0.0]], threshold=how.threshold)


class _SumKept(TeaCache):
    """Runs every step once the threshold is reached."""

    def runs(self) -> None:
        pass


class _BesideTheStepBefore(FirstBlock):
    """Compares with the step before, so that small changes never add up."""

    def finds_little_change(self) -> bool:
        now_BLD = self._now_BLD
        found = super().finds_little_change()
        self._full_BLD = now_BLD
        return found


class _StartIgnored(StepCache):
    def _may_skip(self) -> bool:
        return not (self._walk.in_start(0.0) or self._walk.at_end) and self._in_a_row < self._most


class _LastStepToo(StepCache):
    def __init__(self, method: Method, walk: Walk, *, start: float, most_in_a_row: int):
        super().__init__(method, walk, start=start, most_in_a_row=most_in_a_row)
        found = method.finds_little_change
        method.finds_little_change = lambda: walk.at_end or found()  # type: ignore[method-assign]

    def _may_skip(self) -> bool:
        return self._walk.at_end or super()._may_skip()


# ---------------------------------------------------------------------------------------------------- which residual


class _Watched(StepCache):
    """A cache whose residual is looked after by a subclass: `_keep` what was added, give what `_added`."""

    _kept_BLD: Tensor | None = None

    @property
    def _residual_BLD(self) -> Tensor | None:
        return self._added()

    @_residual_BLD.setter
    def _residual_BLD(self, residual_BLD: Tensor | None) -> None:
        if residual_BLD is not None:
            self._keep(residual_BLD)

    def _keep(self, residual_BLD: Tensor) -> None:
        self._kept_BLD = residual_BLD

    def _added(self) -> Tensor | None:
        return self._kept_BLD


class _FirstKept(_Watched):
    def _keep(self, residual_BLD: Tensor) -> None:
        self._kept_BLD = residual_BLD if self._kept_BLD is None else self._kept_BLD


class _TimeBefore(_Watched):
    _older_BLD: Tensor | None = None

    def _keep(self, residual_BLD: Tensor) -> None:
        self._older_BLD, self._kept_BLD = self._kept_BLD, residual_BLD

    def _added(self) -> Tensor | None:
        return super()._added() if self._older_BLD is None else self._older_BLD


class _OneForBoth(_Watched):
    """As the reference does it: conditional and unconditional prediction are asked one after the other."""

    _last_BLD: Tensor | None = None

    def _keep(self, residual_BLD: Tensor) -> None:
        super()._keep(residual_BLD)
        _OneForBoth._last_BLD = residual_BLD

    def _added(self) -> Tensor | None:
        return _OneForBoth._last_BLD if self._kept_BLD is not None else None


class _OtherPrediction(_Watched):
    """The caches of a walk are made one after the other, too."""

    _alone: _OtherPrediction | None = None

    def __init__(self, method: Method, walk: Walk, *, start: float, most_in_a_row: int):
        super().__init__(method, walk, start=start, most_in_a_row=most_in_a_row)
        self._other = _OtherPrediction._alone
        if self._other is None:
            _OtherPrediction._alone = self
        else:
            self._other._other, _OtherPrediction._alone = self, None

    def _added(self) -> Tensor | None:
        assert self._other is not None
        return self._other._kept_BLD


class _WithoutTheFirstBlock(FirstBlock):
    """What the rest added is put on the tokens that went into the first block."""

    def look(self, stack: Stack, walk: Walk) -> Tensor:
        before_BLD = stack.tokens_BLD
        super().look(stack, walk)
        self._before_BLD = before_BLD
        return _Since(before_BLD, stack.tokens_BLD)  # type: ignore[return-value]


class _Since:
    """Tokens that a residual is measured from in one place, and put on in another."""

    def __init__(self, put_on_BLD: Tensor, from_BLD: Tensor):
        self._put_on_BLD, self._from_BLD = put_on_BLD, from_BLD

    def __rsub__(self, after_BLD: Tensor) -> Tensor:
        return after_BLD - self._from_BLD

    def __add__(self, residual_BLD: Tensor) -> Tensor:
        return torch.add(self._put_on_BLD, residual_BLD)


ANY = {
    "start ignored": (Parts(cache=_StartIgnored), {"steps"}),
    "last step left out": (Parts(cache=_LastStepToo), {"steps"}),
    "first residual kept": (Parts(cache=_FirstKept), {"distance"}),
    "residual of the time before": (Parts(cache=_TimeBefore), {"distance"}),
    "one residual for both predictions": (Parts(cache=_OneForBoth), {"distance"}),
    "residual of the other prediction": (Parts(cache=_OtherPrediction), {"distance"}),
}
"""For each fault its parts, and what must tell it, at the least."""
OWN = {
    "magcache": {"ratios ignored": (Parts(method=_ratios_ignored), {"distance", "steps"})},
    "teacache": {
        "polynomial ignored": (Parts(method=_polynomial_ignored), {"steps", "distance"}),
        "sum kept": (Parts(method=lambda how: _SumKept(how.numbers, threshold=how.threshold)), {"steps"}),
    },
    "first_block": {
        "compared with the step before": (
            Parts(method=lambda how: _BesideTheStepBefore(threshold=how.threshold)), {"steps", "distance"},
        ),
        "put on what went into the first block": (
            Parts(method=lambda how: _WithoutTheFirstBlock(threshold=how.threshold)), {"distance"},
        ),
    },
}  # fmt: skip
"""Faults of one method."""
