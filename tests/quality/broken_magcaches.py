"""MagCaches with one fault each, to show that the guard of the right one can fail.

Each is right but for one place: which steps are left out, or which residual stands in for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from engine.sampling.magcache import MagCache, Run, skipped_steps


@dataclass(frozen=True)
class Parts:
    """What engine/tasks/studio.py makes a MagCache of."""

    skipped_steps: Callable[..., list[bool]] = skipped_steps
    cache: type[MagCache] = MagCache


RIGHT = Parts()

# ------------------------------------------------------------------------------------------------------- which steps


def _ratios_ignored(ratios: Sequence[float], **how: Any) -> list[bool]:
    return skipped_steps([1.0 for _ in ratios], **how)


def _retention_ignored(ratios: Sequence[float], **how: Any) -> list[bool]:
    return skipped_steps(ratios, **{**how, "retention_ratio": 0.0})


def _last_step_too(ratios: Sequence[float], **how: Any) -> list[bool]:
    return [*skipped_steps(ratios, **how)[:-1], True]


# ---------------------------------------------------------------------------------------------------- which residual


class _TakenApart(MagCache):
    """MagCache in two pieces: what is kept of a step that ran, and what one that is left out adds."""

    def __call__(self, before_BLD: Tensor, run: Run) -> Tensor:
        if next(self._skipped, False) and self._residual is not None:
            return before_BLD + self._added()
        after_BLD = run()
        self._keep(after_BLD - before_BLD)
        return after_BLD

    def _keep(self, residual_BLD: Tensor) -> None:
        self._residual = residual_BLD

    def _added(self) -> Tensor:
        assert self._residual is not None
        return self._residual


class _FirstKept(_TakenApart):
    def _keep(self, residual_BLD: Tensor) -> None:
        self._residual = residual_BLD if self._residual is None else self._residual


class _TimeBefore(_TakenApart):
    _older_BLD: Tensor | None = None

    def _keep(self, residual_BLD: Tensor) -> None:
        self._older_BLD, self._residual = self._residual, residual_BLD

    def _added(self) -> Tensor:
        return super()._added() if self._older_BLD is None else self._older_BLD


class _OneForBoth(_TakenApart):
    """As the reference does it: conditional and unconditional prediction are asked one after the other."""

    _last_BLD: Tensor

    def _keep(self, residual_BLD: Tensor) -> None:
        super()._keep(residual_BLD)
        _OneForBoth._last_BLD = residual_BLD

    def _added(self) -> Tensor:
        return _OneForBoth._last_BLD


class _OtherPrediction(_TakenApart):
    """The caches of a section are made one after the other, too."""

    _alone: _OtherPrediction | None = None

    def __init__(self, skipped: Sequence[bool]):
        super().__init__(skipped)
        self._other = _OtherPrediction._alone
        if self._other is None:
            _OtherPrediction._alone = self
        else:
            self._other._other, _OtherPrediction._alone = self, None

    def _added(self) -> Tensor:
        assert self._other is not None
        return _TakenApart._added(self._other)


BROKEN = {
    "ratios ignored": (Parts(skipped_steps=_ratios_ignored), {"distance", "steps"}),
    "retention ignored": (Parts(skipped_steps=_retention_ignored), {"steps"}),
    "last step left out": (Parts(skipped_steps=_last_step_too), {"steps"}),
    "first residual kept": (Parts(cache=_FirstKept), {"distance"}),
    "residual of the time before": (Parts(cache=_TimeBefore), {"distance"}),
    "one residual for both predictions": (Parts(cache=_OneForBoth), {"distance"}),
    "residual of the other prediction": (Parts(cache=_OtherPrediction), {"distance"}),
}
"""For each fault its parts, and what must tell it, at the least."""
