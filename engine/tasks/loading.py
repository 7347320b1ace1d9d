"""A bar while weights come from disk, or go to where they wait: over a network a large model takes minutes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..contract.events import Meter, Say
from ..parts.reading_told import Advance, listening

MIB = 1 << 20
QUIET_S = 1.0


@contextmanager
def loading_is_told(say: Say, *, label: str) -> Iterator[None]:
    """What is read in this block is shown, once it has taken longer than a second."""

    def begin(total_bytes: int) -> Advance:
        meter = Meter(say, total=-(-total_bytes // MIB), unit="MiB", label=label, quiet_s=QUIET_S)
        done_bytes = 0

        def advance(count: int) -> None:
            nonlocal done_bytes
            before, done_bytes = done_bytes, done_bytes + count
            if done_bytes == total_bytes:
                meter.advance(-(-total_bytes // MIB) - before // MIB)
            else:
                meter.advance(done_bytes // MIB - before // MIB)

        return advance

    with listening(begin):
        yield
