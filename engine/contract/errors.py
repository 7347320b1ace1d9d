"""Error kinds, exit statuses, and the one place that turns any exception into a `failed` event.

An `EngineError` is for the person who can act: what was given, what would be right, where to change it. Everything
else is our bug and keeps its traceback in the log. Knows no torch: out-of-memory errors are recognised by their name.
"""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterator

from .events import Failed
from .packages import RUN, is_own

STATUS = {"done": 0, "stopped": 0, "option": 2, "data": 2, "weights": 2, "memory": 3, "disk": 4, "bug": 70}
INTERRUPTED = 130  # ended at once by a second Ctrl-C: nothing was saved, so neither 0 nor a failure of ours

_DISK_NUMBERS = {errno.EIO, errno.EROFS, errno.EFBIG, errno.EMFILE, errno.ENFILE}
_FULL_NUMBERS = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no EDQUOT
_FULL_WORDS = (
    "no space left on device", "(os error 28)", "disk quota exceeded", "pytorchstreamwriter failed",
    "] . unexpected pos",
)  # fmt: skip
_PATH_NUMBERS = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")  # how libraries written in Rust say which error it was
_MEMORY_NAMES = {"OutOfMemoryError", "MemoryError"}
_MEMORY_WORDS = ("cuda out of memory", "cuda error: out of memory", "can't allocate memory", "hip out of memory")
_MEMORY_HINT = (
    "Use less memory: --blocks_to_swap (more), --fp8_base --fp8_scaled, --gradient_checkpointing, a smaller "
    "resolution, fewer target_frames or a smaller batch_size in the dataset file."
)


class EngineError(Exception):
    """Something that a person can put right. `message` is one line; `hint` says what to change."""

    kind = "bug"
    exit_status = STATUS["bug"]

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.hint = hint


class OptionError(EngineError):
    """An option is unknown, of the wrong type, out of range, or contradicts another. `names` are those involved."""

    kind = "option"
    exit_status = STATUS["option"]

    def __init__(self, message: str, hint: str = "", *, names: tuple[str, ...] = ()):
        super().__init__(message, hint)
        self.names = names


class DataError(EngineError):
    """The dataset, its files or a cache are not as they should be."""

    kind = "data"
    exit_status = STATUS["data"]


class WeightsError(EngineError):
    """A checkpoint or LoRA file is missing, broken, of another kind, or does not fit the job."""

    kind = "weights"
    exit_status = STATUS["weights"]


class OutOfMemoryError(EngineError):
    """GPU or main memory ran out. The hint names options and values."""

    kind = "memory"
    exit_status = STATUS["memory"]


class DiskError(EngineError):
    """A file could not be read or written: full disk, no permission, broken device."""

    kind = "disk"
    exit_status = STATUS["disk"]


class ProcessLost(EngineError):
    """Another process of the same job is gone. What happened to that one is the news, so it is told instead if known.

    Of the kind "bug", because nobody knows better.
    """


class Stopped(EngineError):
    """Unwinds a job after a stop request; everything is saved."""

    kind = "stopped"
    exit_status = STATUS["stopped"]


def as_failed(exception: BaseException) -> tuple[Failed, int]:
    """The event that ends a job, and the process's exit status. Looks through chained exceptions for the cause."""
    for link in _chain(exception):
        if isinstance(link, EngineError):
            return Failed(kind=link.kind, message=link.message, hint=link.hint), link.exit_status
        if isinstance(link, ModuleNotFoundError) and is_own(link):
            message = f"This Python ({sys.executable}) lacks the package {link.name}, which the engine needs."
            hint = f"The engine has its own environment: `{RUN} …` uses it, `python -m env_bootstrap repair` fixes it."
            return Failed(kind="option", message=message, hint=hint), STATUS["option"]
        if is_out_of_memory(link):
            message = f"Out of memory: {_first_line(link)}"
            return Failed(kind="memory", message=message, hint=_MEMORY_HINT), STATUS["memory"]
        if is_disk(link):
            hint = "Free some space or choose another folder, and run the same command again."
            if isinstance(link, OSError) and link.errno not in _FULL_NUMBERS | _DISK_NUMBERS:
                hint = "Check that the path exists and that you may read and write it."
            return Failed(kind="disk", message=_disk_message(link), hint=hint), STATUS["disk"]
    if isinstance(exception, KeyboardInterrupt):
        return Failed(kind="stopped", message="Ended at once; nothing more was saved."), INTERRUPTED
    message = f"{type(exception).__name__}: {_first_line(exception)}"
    hint = "This is a bug in the engine. The full traceback is in the job's log.txt: please report it."
    return Failed(kind="bug", message=message, hint=hint), STATUS["bug"]


def _chain(exception: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = exception
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__


def _first_line(exception: BaseException) -> str:
    return next((line.strip() for line in str(exception).splitlines() if line.strip()), type(exception).__name__)


def is_out_of_memory(exception: BaseException) -> bool:
    """Whether a library ran out of memory; our own OutOfMemoryError has that name too."""
    if type(exception).__name__ in _MEMORY_NAMES:
        return True
    return isinstance(exception, RuntimeError) and any(word in str(exception).lower() for word in _MEMORY_WORDS)


def is_full(exception: BaseException) -> bool:
    """Whether a disk or a quota had no room left, in the words of any library."""
    if isinstance(exception, OSError) and exception.errno is not None:
        return exception.errno in _FULL_NUMBERS
    return any(word in str(exception).lower() for word in _FULL_WORDS)


def is_disk(exception: BaseException) -> bool:
    """Whether reading or writing a file failed, in the words of any library."""
    if isinstance(exception, OSError):
        known = exception.errno in _FULL_NUMBERS | _DISK_NUMBERS
        return known or (exception.errno is not None and exception.filename is not None)
    numbers = {int(number) for number in _SYSTEM_ERROR.findall(str(exception))}
    return is_full(exception) or not numbers.isdisjoint(_DISK_NUMBERS | _PATH_NUMBERS)


def _disk_message(exception: BaseException) -> str:
    if isinstance(exception, OSError):
        where = f": {exception.filename}" if exception.filename is not None else ""
        return f"{exception.strerror or type(exception).__name__}{where}"
    return f"A file could not be written: {_first_line(exception)}"
