"""One writer at a time: a lock on a name that the operating system drops when its holder dies, however it dies.

The lock's file says who holds it, for the message only, and stays behind: it is the kernel's lock that counts. Where a
disk has no locks (Lustre without `flock`, NFS without its daemon), there is none, and work is not refused for it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from .errors import OptionError

FAR_BYTE = 1 << 30  # Windows locks bytes against reading too, so a byte is locked that the text never reaches
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


@contextlib.contextmanager
def only_one(path: Path, *, what: str, hint: str) -> Iterator[None]:
    """Hold the lock file `path` inside this block. OptionError "`what` …" when another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _try_lock(descriptor):
            raise OptionError(f"{what} by another run, {_holder(path)}.", hint=hint)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}".encode())
        yield
    finally:
        os.close(descriptor)  # which gives the lock back


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, FAR_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "just started"
    except OSError:
        return "just started"
