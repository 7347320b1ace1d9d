"""How far the weights of a model have come: what reads them says so here, whoever has a model loaded listens.

Between the two lie a family's functions, which hand on paths and formats; a parameter for this through all of them, and
through what they are built from, would be seen everywhere and used nowhere. Nobody need listen.
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
    """In this block and thread `begin` hears, of each module, how many bytes are to come; what it returns is told how
    many more there are, each time."""
    before = _listener.set(begin)
    try:
        yield
    finally:
        _listener.reset(before)


def begun(total_bytes: int) -> Advance:
    """So many bytes are to come: returns what to tell as they do."""
    begin = _listener.get()
    return _nobody if begin is None or not total_bytes else begin(total_bytes)


def _nobody(count: int) -> None:
    pass
