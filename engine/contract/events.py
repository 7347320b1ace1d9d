"""The protocol between a running job and whoever started it: one frozen dataclass an event, one JSON line each.

Versioned by `PROTOCOL`; a reader ignores fields it does not know, so fields may be added without raising it. Also the
two helpers that every task uses: `Meter` (progress with rate and time left) and `Control` (what was asked of the job).
Knows nothing of pipes and terminals: `write` and `read` work on text.
"""

from __future__ import annotations

import dataclasses
import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

PROTOCOL = 1
PROGRESS_INTERVAL_S = 0.1
RATE_WINDOW_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Hello:
    """Always first. `job` is the job's folder, or its command line's verb when it has none."""

    protocol: int = PROTOCOL
    version: str = ""
    job: str = ""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A new part of the work begins."""

    name: str
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """`done` of `total` `unit`s; `rate` in units a second; `total` None when it cannot be known."""

    done: int
    total: int | None
    unit: str
    rate: float | None = None
    eta_s: float | None = None
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Numbers of one optimizer step, by their TensorBoard names ("loss/current", "lr/unet")."""

    step: int
    values: dict[str, float]
    epoch: int | None = None


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A picture to show: a file, or a JPEG in base64.

    `passing`: of something that is not finished; the next one of the same path takes its place, and what it shows is
    gone when the finished one is there.
    """

    path: str = ""
    jpeg: str = ""
    label: str = ""
    passing: bool = False


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A finished file: `kind` is a word for the person ("LoRA", "video", "state")."""

    kind: str
    path: str


@dataclass(frozen=True, kw_only=True)
class Resource:
    """What the machine is spending, names with units ("vram_mib", "ram_mib")."""

    values: dict[str, float]


PlannedStage = dict[str, Any]
"""`name`, `needed_mib`, and what takes memory in words: `device_mib` and `main_mib`, name -> MiB."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a job will take, before it runs. `needed_mib` has to be free on the GPU with `options` added to the job's,
    `asked_mib` without; `limit_mib` is what there is, None where that is not known. `ram_mib`: of main memory.
    `scratch_mib` are written to `scratch_folder`, whose disk has `scratch_free_mib`, None where that is not known. Of
    several processes on one machine, stages and the GPU are each one's, main memory and scratch files all of theirs.
    """

    stages: list[PlannedStage]
    asked_mib: float
    needed_mib: float
    limit_mib: float | None
    ram_mib: float
    fits: bool
    options: dict[str, Any]
    message: str = ""
    scratch_mib: float = 0.0
    scratch_folder: str = ""
    scratch_free_mib: float | None = None


@dataclass(frozen=True, kw_only=True)
class Log:
    """A line for the log; `level` is debug, info, warning or error."""

    message: str
    level: str = "info"


@dataclass(frozen=True, kw_only=True)
class Warning_:
    """Something the person should know, though the job goes on."""

    message: str


@dataclass(frozen=True, kw_only=True)
class Done:
    """Last event of a job that succeeded, or that stopped with everything saved."""

    message: str = ""
    stopped: bool = False


@dataclass(frozen=True, kw_only=True)
class Failed:
    """Last event of a job that did not succeed. `kind` as in `errors.STATUS`."""

    kind: str
    message: str
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A server's own, behind `done` or `failed` of a job: its exit status. What lies between `hello` and this is of it.

    `job` as in the order to run it. `leaving`: the server ends now, and takes no further job.
    """

    job: str
    status: int
    leaving: bool = False


Event = (
    Hello | Stage | Progress | Metric | Preview | Artifact | Resource | Plan | Log | Warning_ | Done | Failed | Finished
)
Say = Callable[[Event], None]

EVENTS: dict[str, type[Any]] = {
    "hello": Hello, "stage": Stage, "progress": Progress, "metric": Metric, "preview": Preview, "artifact": Artifact,
    "resource": Resource, "plan": Plan, "log": Log, "warning": Warning_, "done": Done, "failed": Failed,
    "finished": Finished,
}  # fmt: skip
_NAMES = {event: name for name, event in EVENTS.items()}
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def write(event: Event) -> str:
    """One line of JSON, without the newline. Numbers that JSON lacks become "NaN", "Infinity", "-Infinity".

    A byte of a file's name that is no UTF-8 is told as `\\udce9`: such a name must not end the job that tells it.
    """
    fields = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
    return json.dumps({"event": _NAMES[type(event)], **_plain(fields)}, ensure_ascii=False, allow_nan=False)


def read(line: str) -> Event:
    """The event of one line. ValueError when it is no event of this protocol; unknown fields are ignored."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Not an event, because not JSON: {line[:80]!r}") from error
    if not isinstance(data, dict) or not isinstance(data.get("event"), str) or data["event"] not in EVENTS:
        raise ValueError(f"Not an event of protocol {PROTOCOL}: {line[:80]!r}")
    event = EVENTS[data.pop("event")]
    known = {field.name: field.type for field in dataclasses.fields(event)}
    values = {name: _restored(value, str(known[name])) for name, value in data.items() if name in known}
    try:
        result: Event = event(**values)
    except TypeError as error:
        raise ValueError(f"An event with missing fields: {line[:80]!r}") from error
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value


def _restored(value: Any, annotation: str) -> Any:
    if "float" not in annotation:
        return value
    if isinstance(value, dict):
        return {name: _restored(item, "float") for name, item in value.items()}
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


class Meter:
    """Counts finished units and says `Progress`: at most ten a second, and always the last. Thread-safe.

    With `quiet_s` nothing is said before so many seconds have passed: what mostly takes no time needs no bar.
    """

    def __init__(self, say: Say, *, total: int | None, unit: str, label: str = "", quiet_s: float = 0.0):
        self._say, self._total, self._unit, self._label = say, total, unit, label
        self._done = 0
        self._lock = threading.Lock()
        now = time.monotonic()
        self._quiet_until = now + quiet_s
        self._history: deque[tuple[float, int]] = deque([(now, 0)])
        self._said_at: float | None = None
        self._said_done = -1

    def advance(self, n: int = 1) -> None:
        """`n` more units are finished."""
        with self._lock:
            self._done += n
            now = time.monotonic()
            self._history.append((now, self._done))
            while len(self._history) > 2 and now - self._history[0][0] > RATE_WINDOW_S:
                self._history.popleft()
            last = self._total is not None and self._done >= self._total
            if last or self._said_at is None or now - self._said_at >= PROGRESS_INTERVAL_S:
                self._tell(now)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that counts neither for the rate nor for the time left, since something else is done in it."""
        began = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                gone = time.monotonic() - began
                self._history = deque((moment + gone, done) for moment, done in self._history)

    def close(self) -> None:
        """Say how far it came, unless that was said already or there was nothing to do."""
        with self._lock:
            if self._said_done != self._done and self._total != 0:
                self._tell(time.monotonic())

    def _tell(self, now: float) -> None:
        if now < self._quiet_until:
            return
        self._said_at, self._said_done = now, self._done
        since, before = self._history[0]
        elapsed_s = now - since
        rate = (self._done - before) / elapsed_s if elapsed_s > 0 and self._done > before else None
        eta_s = (self._total - self._done) / rate if rate and self._total is not None else None
        self._say(
            Progress(done=self._done, total=self._total, unit=self._unit, rate=rate, eta_s=eta_s, label=self._label)
        )


@dataclass(frozen=True)
class Order:
    """One line of stdin: `stop`, `save` or `sample`; a server also takes `run` with a job.

    `job`: a job file, whose record goes where it says itself, or a folder with a `job.toml`, which gets the record.
    """

    command: str
    job: str = ""


def write_order(order: Order) -> str:
    """One line of JSON, without the newline."""
    return json.dumps({"command": order.command, **({"job": order.job} if order.job else {})})


def read_order(line: str) -> Order:
    """The order of a line: a JSON object, or bare words as a person types them (`stop`, `run FOLDER`)."""
    text = line.strip()
    with suppress(json.JSONDecodeError):
        data = json.loads(text)
        if isinstance(data, dict):
            return Order(str(data.get("command", "")), str(data.get("job", "")))
    command, _, job = text.partition(" ")
    return Order(command, job.strip())


STOP_WITH_STDIN = "MUSUBI_STOP_WITH_STDIN"
"""Environment variable: a job that talks to a person stops at the end of stdin too: a program of ours holds it."""


class Control:
    """What was asked of a running job. Set from any thread, looked at by the job between two steps."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._save = threading.Event()
        self._sample = threading.Event()

    @property
    def stop_requested(self) -> bool:
        """Whether to finish the step at hand, save everything and end."""
        return self._stop.is_set()

    def request_stop(self) -> None:
        self._stop.set()

    def request_save(self) -> None:
        self._save.set()

    def request_sample(self) -> None:
        self._sample.set()

    def take_save(self) -> bool:
        """Whether a save was asked for since the last call."""
        return self._take(self._save)

    def take_sample(self) -> bool:
        """Whether a sample was asked for since the last call."""
        return self._take(self._sample)

    @staticmethod
    def _take(flag: threading.Event) -> bool:
        asked = flag.is_set()
        if asked:
            flag.clear()
        return asked
