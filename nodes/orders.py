"""What the page asks of a run: stop, save, sample, cancel. It reaches whichever program works on the run.

Where none does just then, as while the run waits for the GPU, a stop or a cancel is for the next one. Thread-safe.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Literal, Protocol


class Obedient(Protocol):
    """A program that works on a run (nodes/run.py, nodes/workers.py)."""

    def send(self, command: str) -> None: ...

    def cancel(self) -> None: ...


class Orders:
    """The commands for one run, from its beginning to its end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._program: Obedient | None = None
        self._end: Literal["", "stop", "cancel"] = ""

    @property
    def to_end(self) -> bool:
        """Whether the run was told to stop, or cancelled."""
        return bool(self._end)

    def send(self, command: str) -> None:
        """Stop, save or sample."""
        with self._lock:
            if command == "stop":
                self._end = self._end or "stop"
            if self._program is not None:
                self._program.send(command)

    def cancel(self) -> None:
        with self._lock:
            self._end = "cancel"
            if self._program is not None:
                self._program.cancel()

    @contextlib.contextmanager
    def to(self, program: Obedient) -> Iterator[None]:
        """In this block they go to `program`, one that came before too."""
        with self._lock:
            self._program = program
            if self._end == "cancel":
                program.cancel()
            elif self._end == "stop":
                program.send("stop")
        try:
            yield
        finally:
            with self._lock:
                self._program = None
