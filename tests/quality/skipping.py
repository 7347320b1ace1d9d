"""Which steps step caches let run, noted while clips are made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from engine.sampling.step_caches import Stack, StepCache
from engine.tasks import step_caching


@contextmanager
def noted(cache: type[StepCache] = StepCache) -> Iterator[list[list[int]]]:
    """While this lasts, generations have caches of this class, which tell here what steps they ran in full: a list for
    each cache, in the order in which they were made; those that are never asked tell nothing."""
    told: list[list[int]] = []

    class Noting(cache):  # type: ignore[valid-type, misc]
        _ran: list[int] | None = None

        def __call__(self, stack: Stack) -> Tensor:
            if self._ran is None:
                self._ran = []
                told.append(self._ran)
            left_out = self.left_out
            after_BLD = super().__call__(stack)
            self._ran += [self._walk.step] if self.left_out == left_out else []
            return after_BLD

    before = step_caching.StepCache
    step_caching.StepCache = Noting  # type: ignore[misc]
    try:
        yield told
    finally:
        step_caching.StepCache = before  # type: ignore[misc]
