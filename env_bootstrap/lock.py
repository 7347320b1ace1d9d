"""One maker at a time: a lock that the operating system drops when its holder dies, however it dies.

The file's text says who holds it, for the message only; the lock itself is the kernel's. On POSIX it is `flock`, which
a child that inherits the descriptor keeps too: an installer that outlives a killed parent for a moment still locks.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .problems import Problem, disk_or_home

POLL_S = 0.25
FAR_BYTE = 1 << 30  # Windows locks bytes against reading too, so a byte is locked that the text never reaches


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, FAR_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_current(descriptor: int, path: Path) -> bool:
    """False when `remove` deleted the file between our opening it and our locking it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def holder(path: Path) -> str:
    """Who wrote the lock's text last, for a message."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return f"'{about['command']}', process {about['pid']} on {about['host']}, since {about['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _sign(descriptor: int, command: str) -> None:
    about = {
        "pid": os.getpid(),
        "command": command,
        "host": platform.node(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, json.dumps(about).encode())


def _acquire(path: Path, *, timeout_s: float | None, waiting: Callable[[str], None]) -> int:
    started, told = time.monotonic(), False
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if _try_lock(descriptor):
            if _is_current(descriptor, path):
                return descriptor
            os.close(descriptor)
            continue
        os.close(descriptor)
        if timeout_s is not None and time.monotonic() - started >= timeout_s:
            raise Problem(
                "locked",
                f"The environment is being worked on by {holder(path)}.",
                "Wait for it to end, or give a longer --timeout (seconds).",
            )
        if not told:
            waiting(f"Waiting: {holder(path)} is working on the environment.")
            told = True
        time.sleep(POLL_S)


@contextlib.contextmanager
def locked(
    path: Path, *, command: str, timeout_s: float | None = None, waiting: Callable[[str], None] = lambda text: None
) -> Iterator[int]:
    """Hold the lock at `path`; gives its descriptor. Waits for ever without `timeout_s`, else raises Problem."""
    try:
        descriptor = _acquire(path, timeout_s=timeout_s, waiting=waiting)
        _sign(descriptor, command)
    except OSError as failure:
        raise disk_or_home(failure, path) from failure
    try:
        yield descriptor
    finally:
        os.close(descriptor)
