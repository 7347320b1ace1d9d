"""Standard streams that a job outlives: closed ones, and those whose other end goes away while it runs.

Python has no stream where a program is started with one closed (`2>&-`), and the next file that is opened, a checkpoint
perhaps, gets its number, into which C code would go on writing. And whatever prints into a pipe that nobody reads any
more gets an exception, libraries too, in the middle of their work. Neither may end a job, which keeps its own record.
Only for a process of our own: who imports the engine keeps the streams that it has.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TextIO

_NAMES = ("stdin", "stdout", "stderr")


def make_last() -> None:
    """Open what is closed on nothing, and let the two that are written to fall silent once nobody listens."""
    for number, name in enumerate(_NAMES):
        if not _is_open(number):
            _to_nothing(number)
        stream = getattr(sys, name)
        if number == 0:
            sys.stdin = stream or open(0, encoding="utf-8", closefd=False)
        elif not (os.name == "nt" and stream is not None and stream.isatty()):  # a console there is no file
            setattr(sys, name, _lasting(number, stream))


def _lasting(number: int, before: TextIO | None) -> TextIO:
    """A stream to the same place that buffers and encodes as the one before."""
    raw = _Lasting(number)
    at_once = getattr(before, "write_through", False)  # python -u
    return io.TextIOWrapper(
        raw if at_once else io.BufferedWriter(raw),
        encoding=getattr(before, "encoding", "utf-8"),
        errors=getattr(before, "errors", "backslashreplace"),
        line_buffering=number == 2 or getattr(before, "line_buffering", False),
        write_through=at_once,
    )


class _Lasting(io.FileIO):
    """Writes to a standard stream until its reader is gone, then to nothing. A full disk stays an error."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        self._gone = {errno.EPIPE, errno.EBADF}
        if self.isatty():
            self._gone.add(errno.EIO)  # of a window that was closed
        if os.name == "nt":
            self._gone.add(errno.EINVAL)  # what a broken pipe is called there

    def write(self, data) -> int | None:  # type: ignore[no-untyped-def, override]
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in self._gone:
                raise
        _to_nothing(self.fileno())  # the number itself, so that C code and child processes are spared too
        return super().write(data)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _to_nothing(number: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    if nothing == number:
        os.set_inheritable(number, True)
    else:
        os.dup2(nothing, number)
        os.close(nothing)
