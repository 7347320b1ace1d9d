"""Files and folders that come into being whole or not at all: a temporary name beside them, then one rename.

Everything that the engine writes goes through here, scratch files aside, which have no name. So whatever ends a process
(`kill -9`, a full disk, a power cut) leaves the old file or the new one under the final name, never a part. A failed
write removes what it had; a killed one leaves a hidden `.part-…` file or folder, which `clean_leftovers` removes. What
the disk refuses becomes a DiskError. Knows no format. Given up: replacing a non-empty folder in one step, which only
Linux could do; the old one waits under `previous_name` for that moment.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import DiskError, EngineError, is_disk, is_full

ADVICE = "Free some space, or choose another folder."
PREVIOUS_SUFFIX = ".previous"
LEFTOVER_AGE_S = 3600.0
_HOST = f"{zlib.crc32(platform.node().encode()):08x}"  # process numbers of another machine mean nothing here
_LEFTOVER = re.compile(r"\.part-(?P<host>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{8}")


@contextmanager
def whole_file(path: Path, *, advice: str = ADVICE, durable: bool = True) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and is removed otherwise.

    Makes the folder when it is missing. `durable` holds through a power cut too, and costs a wait for the disk.
    DiskError for whatever the disk refuses, with `advice` as its hint when the disk is full.
    """
    with _disk_errors(path, advice):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(path)
        try:
            temporary.touch()  # a folder that takes no files is found out here, whatever library writes later
            yield temporary
            if durable:
                _to_disk(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path, *, advice: str = ADVICE, durable: bool = True, replace: bool = False) -> Iterator[Path]:
    """The same for a folder, which must not exist or be empty, unless `replace` puts it in an older one's place."""
    with _disk_errors(folder, advice):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary, previous = _beside(folder), previous_name(folder)
        temporary.mkdir()
        try:
            yield temporary
            if durable:
                for file in (path for path in temporary.rglob("*") if path.is_file()):
                    _to_disk(file)
            if replace and folder.exists():
                shutil.rmtree(previous, ignore_errors=True)
                os.replace(folder, previous)
            elif folder.exists():
                folder.rmdir()
            os.replace(temporary, folder)
            if replace:
                shutil.rmtree(previous, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: Path, data: bytes, *, advice: str = ADVICE, durable: bool = True) -> None:
    """Write a whole file. DiskError."""
    with whole_file(path, advice=advice, durable=durable) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str, *, advice: str = ADVICE, durable: bool = True) -> None:
    """Write a whole text file: UTF-8, lines end in a line feed on every system. DiskError."""
    write_bytes(path, text.encode("utf-8"), advice=advice, durable=durable)


def previous_name(folder: Path) -> Path:
    """Where the older folder of the same name waits while `whole_folder` puts the new one in its place."""
    return folder.with_name(folder.name + PREVIOUS_SUFFIX)


def disk_error(path: Path, error: Exception, *, advice: str = ADVICE) -> DiskError:
    """What to tell the person about a write that failed."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error).strip().partition("\n")[0]
    if is_full(error):
        return DiskError(f"{path} could not be written: the disk is full ({reason}).", advice)
    is_long = isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG
    hint = "Use a shorter name." if is_long else "Check the folder and its permissions."
    return DiskError(f"{path} could not be written: {reason}.", hint)


def is_utf_8(text: str) -> bool:
    """Whether a text can be written at all: bytes of a name from another system's archive cannot, nor half an emoji."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def in_the_way(folder: Path) -> Path | None:
    """The file that stands where this folder, or one above it, would have to be; None when there is none."""
    for path in (folder, *folder.parents):
        if os.path.lexists(path):
            return None if os.path.isdir(path) else path
    return None


def clean_leftovers(folder: Path) -> int:
    """Remove what killed writers left in a folder, and say how many. A running writer's stays, unless an hour old."""
    removed = 0
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return 0  # whoever uses the folder next says what is wrong with it
    for entry in entries:
        found = _LEFTOVER.fullmatch(entry.name)
        if found is None or not _is_abandoned(entry, found["host"], int(found["process"])):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            Path(entry.path).unlink(missing_ok=True)
        removed += 1
    return removed


def _beside(path: Path) -> Path:
    # short, whatever the name it stands for: names have a limit
    return path.with_name(f".part-{_HOST}-{os.getpid()}-{os.urandom(4).hex()}")


def _to_disk(file: Path) -> None:
    with open(file, "rb+") as stream:
        os.fsync(stream.fileno())


@contextmanager
def _disk_errors(path: Path, advice: str) -> Iterator[None]:
    try:
        yield
    except EngineError:
        raise
    except Exception as error:  # libraries wrap errors of the disk in kinds of their own
        if isinstance(error, OSError) or is_disk(error):
            raise disk_error(path, error, advice=advice) from error
        raise


def _is_abandoned(entry: os.DirEntry[str], host: str, process: int) -> bool:
    try:
        old = time.time() - entry.stat(follow_symlinks=False).st_mtime > LEFTOVER_AGE_S
    except FileNotFoundError:
        return False
    # elsewhere than on POSIX, signal 0 is not a harmless question
    if old or host != _HOST or os.name != "posix" or process == os.getpid():
        return old
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False
