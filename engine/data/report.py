"""What becomes of each thing to cache: counted, told to the person, summed up. Used by pipeline.py."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..contract.errors import DataError, EngineError, Stopped
from ..contract.events import Log, Meter, Say, Warning_
from .clips import Window
from .config import DatasetConfig
from .items import Source
from .stages import Run


@dataclass(frozen=True)
class Failure:
    """A source, or some windows of it, that could not be cached. No windows: the whole source."""

    path: Path
    reason: str
    windows: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class CacheReport:
    """What a run did. `done` and `skipped` count windows (latents) or sources (text), `purged` files."""

    done: int
    skipped: int
    failed: tuple[Failure, ...] = ()
    purged: int = 0

    def summary(self, unit: str) -> str:
        """One line for the person."""
        purged = f", {self.purged} orphaned caches removed" if self.purged else ""
        return f"{self.done} {unit} cached, {self.skipped} were there, {len(self.failed)} left out{purged}"


@dataclass
class Ledger:
    """Counts what becomes of each item; called from all threads. With `strict` the first failure ends the run."""

    say: Say
    run: Run
    strict: bool = False
    meter: Meter | None = None
    done: int = 0
    failed: list[Failure] = field(default_factory=list)
    _settled: int = 0
    _lock: Any = field(default_factory=threading.Lock)

    def start(self, total: int, *, unit: str, label: str) -> None:
        """From here on items count towards the progress."""
        self.meter = Meter(self.say, total=total, unit=unit, label=label)

    def finish(self) -> None:
        """One item is on disk."""
        with self._lock:
            self.done += 1
        self._settle(1)

    def fail(self, source: Source, reason: str, windows: Sequence[Window] = ()) -> None:
        """A source (before the work started, without windows), or some of its windows, cannot be cached."""
        spans = tuple((window.start, window.count) for window in windows) if source.media != "image" else ()
        place = ""
        if len(spans) == 1:
            place = f", {spans[0][1]} frames from frame {spans[0][0]}"
        elif spans:
            place = f", {len(spans)} clips"
        message = f"{source.path}{place}: {_bare(reason, source.path)}"
        if self.strict:
            self.run.fail(DataError(message, "Without --strict, what cannot be cached is left out."))
            return
        with self._lock:
            self.failed.append(Failure(source.path, reason, spans))
        self.say(Warning_(message=f"Left out: {message}"))
        self._settle(max(1, len(windows)))

    def _settle(self, count: int) -> None:
        if self.meter is not None:
            with self._lock:
                self._settled += count
            self.meter.advance(count)

    def conclude(self, total: int, *, unit: str, stop_requested: bool) -> None:
        """Raise the run's failure, or Stopped when a stop came before all `total` items were settled."""
        if self.meter is not None:
            self.meter.close()
        if self.run.failure is not None:
            raise self.run.failure
        if stop_requested and self._settled < total:
            raise Stopped(f"Stopped with {self.done} of {total} {unit} cached.", "The next run continues from there.")


@dataclass(frozen=True)
class Errand:
    """In place of a ledger where a process helps (company.py): what becomes of each item is told to number 0."""

    run: Run
    tell: Callable[[Mapping[str, Any]], None]

    def finish(self) -> None:
        self.tell({"cached": 1})

    def fail(self, source: Source, reason: str, windows: Sequence[Window] = ()) -> None:
        spans = [(window.start, window.count) for window in windows]
        self.tell({"left_out": source.key, "spans": spans, "reason": reason})


def check_count(results: Sequence[Any], expected: int) -> None:
    """RuntimeError when an encoder gave more or fewer results than it was given items."""
    if len(results) != expected:
        raise RuntimeError(f"the encoder gave {len(results)} results where {expected} were due")


def _bare(reason: str, path: Path) -> str:
    """A reason without the path that it may begin with."""
    return reason.removeprefix(f"{path}: ")


def reason_of(error: Exception) -> str:
    """An error as one sentence or two: what is wrong, and what to do about it."""
    if isinstance(error, EngineError):
        return f"{error.message} {error.hint}".strip()
    if isinstance(error, OSError) and error.strerror:
        return f"the file cannot be read ({error.strerror}). Check its permissions."
    return str(error)


def announce(say: Say, states: Sequence[str], wanted: int, *, unit: str) -> None:
    """Say how much there is to do, and why; nothing when nothing was found."""
    if not states:
        return
    words = {"missing": "new", "stale": "changed", "foreign": "without a fingerprint"}
    counts = [f"{states.count(state)} {word}" for state, word in words.items() if state in states]
    detail = f" ({', '.join(counts)})" if counts else ""
    say(Log(message=f"{len(states)} {unit}: {states.count('fresh')} fresh, {wanted} to do{detail}."))


def usable(report: CacheReport, config: DatasetConfig) -> CacheReport:
    """The same report. DataError when there is nothing to train on."""
    if report.done == 0 and report.skipped == 0:
        what = f"Nothing of {config.path} could be cached"
        if not report.failed:
            raise DataError(f"{what}.", "Check the folders that it names.")
        first, count = report.failed[0], len(report.failed)
        detail = f"{first.path}: {_bare(first.reason, first.path)}"
        many = f": {count} left out, the first is" if count > 1 else "."
        raise DataError(f"{what}{many} {detail}", "Each warning above names a file and what is wrong with it.")
    return report


def one_at_a_time(say: Say) -> Say:
    """Several threads report; whoever listens is spared locking."""
    lock = threading.Lock()

    def locked(event: Any) -> None:
        with lock:
            say(event)

    return locked
