"""Progress of reading a model's weights: the reader reports it here, and the caller that loads a model may listen.

Between the two are a family's functions, which pass on paths and formats; a parameter for progress would go through all
of them, unused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Advance = Callable[[int], None]
Begin = Callable[[int], Advance]

_listener: ContextVar[Begin | None] = ContextVar("listener", default=None)


@contextmanager
def listening(begin: Begin) -> Iterator[None]:
    """Inside, in this thread, `begin` is called for each module with its number of bytes; the function that it returns
    is called with the number of bytes of each part that was read."""
    before = _listener.set(begin)
    try:
        yield
    finally:
        _listener.reset(before)


def begun(total_bytes: int) -> Advance:
    """Report that a module of `total_bytes` is to be read; returns what to call with the bytes of each part."""
    begin = _listener.get()
    return _nobody if begin is None or not total_bytes else begin(total_bytes)


def _nobody(count: int) -> None:
    pass
