"""A lock on a name, for one holder, that the operating system drops when that dies, however it dies.

`only_one` keeps a second writer out; `hold` and `is_held` tell others that somebody is at work. The lock's file says
who holds it, for the message only, and stays behind: it is the kernel's lock that counts. Where a disk has no locks
(Lustre without `flock`, NFS without its daemon), there is none: work is not refused for it, and nobody seems at work.
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
    descriptor = hold(path, f"process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
    if descriptor is None:
        raise OptionError(f"{what} by another run, {_holder(path)}.", hint=hint)
    try:
        yield
    finally:
        let_go(descriptor)


def hold(path: Path, about: str) -> int | None:
    """Hold the lock file `path`, which then says `about`, until `let_go` of what this gives or the end of the process.

    None when it is held already.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not lock(descriptor):
            os.close(descriptor)
            return None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, about.encode())
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def let_go(descriptor: int) -> None:
    """Give a lock back, and close its file."""
    unlock(descriptor)
    os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock of this file. Nobody does of one that is not there, or that cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return not lock(descriptor, shared=True)
        finally:
            os.close(descriptor)
    except OSError:
        return False


def lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file until it is closed; False when another has it open and locked.

    `shared`: beside others that ask so too, where the system can (Windows cannot).
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, FAR_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def unlock(descriptor: int) -> None:
    """Give a lock back at once, also where a forked child still has the file open. Without one nothing happens."""
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, FAR_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_UN)


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "just started"
    except OSError:
        return "just started"
