"""How a running job talks: events out, commands in, everything kept in the job's folder.

Two audiences, one stream of events. With `--events` each event is a line of JSON on the stdout that the engine was
started with, and commands are read from stdin. Otherwise the same events are drawn for a person by `screen.py`, and
stdin means nothing: Ctrl-C and SIGTERM ask the job to stop and save. What libraries print never enters the stream.
Knows no task and no option beyond those of the `Run` section.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ParamSpec

from .contract.errors import DiskError
from .contract.events import (
    STOP_WITH_STDIN,
    Artifact,
    Control,
    Done,
    Event,
    Failed,
    Hello,
    Log,
    Order,
    Progress,
    Say,
    Stage,
    Warning_,
    read_order,
    write,
)
from .contract.files import write_text
from .contract.locks import lock, unlock

PROGRESS_LINES_S = 1.0
P = ParamSpec("P")
NOISY_LIBRARIES = (
    "transformers", "diffusers", "accelerate", "PIL", "matplotlib", "libav", "httpx", "urllib3", "huggingface_hub",
)  # fmt: skip


class JobFolder:
    """The record of one job: `job.toml`, `events.jsonl`, `log.txt`. Appends only, so a killed job keeps its record.

    While the job runs its `events.jsonl` is locked: whoever finds the folder then knows that somebody works in it.
    """

    def __init__(self, path: Path, job_toml: str, *, flag: str = "--job_dir"):
        """`flag`: the option that decides where the folder is. DiskError."""
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiskError(
                f"{flag}: the job's folder {path} cannot be created: {error.strerror or error}.",
                f"Choose a place that you may write to, with {flag}{'' if flag == '--job_dir' else ' or --job_dir'}.",
            ) from error
        self.path = path
        write_text(path / "job.toml", job_toml)
        self._events = open(path / "events.jsonl", "a", encoding="utf-8")
        with contextlib.suppress(OSError):  # a disk that breaks here says so at the first event
            lock(self._events.fileno())
        self._log = open(path / "log.txt", "a", encoding="utf-8", errors="backslashreplace")
        self._last_progress_s = -PROGRESS_LINES_S
        self._given_up = False

    def record(self, event: Event) -> str:
        """Keep an event; progress is thinned to one line a second, except a bar's last.

        A record that the disk does not take must not end the job: it is given up, and this once returns why.
        """
        if isinstance(event, Progress):
            now = time.monotonic()
            if now - self._last_progress_s < PROGRESS_LINES_S and event.done != event.total:
                return ""
            self._last_progress_s = now
        if self._given_up:
            return ""
        try:
            self._events.write(write(event) + "\n")
            self._events.flush()
            self._write_log(event)
        except OSError as error:
            self._given_up = True
            return f"The job's record in {self.path} ends here: {error.strerror or error}."
        return ""

    def _write_log(self, event: Event) -> None:
        level, line = in_words(event)
        if line and logging.getLogger().isEnabledFor(level):
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {logging.getLevelName(level)} {line}\n")
            self._log.flush()

    def handler(self) -> logging.Handler:
        """Where Python's loggers and warnings of this process are kept."""
        return log_handler(self._log)

    def close(self) -> None:
        unlock(self._events.fileno())
        for stream in (self._events, self._log):
            with contextlib.suppress(OSError):  # said already, when the record was given up
                stream.close()


def in_words(event: Event) -> tuple[int, str]:
    """Level and line of an event in `log.txt`; the line is empty for numbers and pictures."""
    if isinstance(event, Stage):
        return logging.INFO, f"{event.name} {event.message}".strip()
    if isinstance(event, Log):
        return getattr(logging, event.level.upper()), event.message
    if isinstance(event, Warning_):
        return logging.WARNING, event.message
    if isinstance(event, Artifact):
        return logging.INFO, f"saved {event.kind}: {event.path}"
    if isinstance(event, Done):
        return logging.INFO, f"{'stopped' if event.stopped else 'done'} {event.message}".strip()
    if isinstance(event, Failed):
        return logging.ERROR, f"{event.message} {event.hint}".strip()
    return logging.NOTSET, ""


def log_handler(stream: IO[str], source: str = "") -> logging.Handler:
    """Writes what is logged, one line a record; `source` is put before each."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {source}%(name)s: %(message)s"))
    return handler


def take_stdout() -> IO[str]:
    """Keep the real stdout for events alone; from here on whatever prints, children too, goes to stderr."""
    private = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    return private


def event_writer(stream: IO[str]) -> Say:
    """One line of JSON for each event. A reader that went away is not our failure: the job stops by stdin's end."""

    def say(event: Event) -> None:
        with contextlib.suppress(OSError):  # a broken pipe, which Windows calls an invalid argument
            stream.write(write(event) + "\n")
            stream.flush()

    return say


def while_it_lasts(show: Callable[P, None]) -> Callable[P, None]:
    """The same, until the terminal is gone: then nothing is shown any more, and the job goes on to its end."""
    gone = False

    def shown(*arguments: P.args, **named: P.kwargs) -> None:
        nonlocal gone
        if not gone:
            try:
                show(*arguments, **named)
            except OSError:  # "Input/output error" of a closed window, a broken pipe
                gone = True

    return shown


def obey(order: Order, control: Control, say: Say) -> None:
    """Carry out what one line of stdin asks of a running job."""
    known: dict[str, Callable[[], None]] = {
        "stop": control.request_stop,
        "save": control.request_save,
        "sample": control.request_sample,
    }
    if order.command in known:
        known[order.command]()
    else:
        say(Warning_(message=f"Unknown command on stdin: {order.command[:80]!r}. Known: {', '.join(known)}."))


def orders() -> Iterator[Order]:
    """What is asked on stdin, until it ends."""
    with contextlib.suppress(OSError, ValueError):
        for line in sys.stdin:
            if line.strip():
                yield read_order(line)


def listen(control: Control, say: Say) -> None:
    """Read commands from stdin on a thread of its own. The end of stdin means stop: whoever started us is gone."""

    def read() -> None:
        for order in orders():
            obey(order, control, say)
        control.request_stop()

    threading.Thread(target=read, name="commands", daemon=True).start()


@contextlib.contextmanager
def signals_ask(control: Control, say: Say) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP (the terminal is gone) ask for a stop; a second SIGINT ends the process at once.

    SIGUSR1 asks to save, SIGUSR2 for samples, where there are such signals. What `nohup` starts ignores SIGHUP.
    """

    asked = Log(message="Stopping: finishing the current step and saving. Press Ctrl-C again to quit at once.")

    def aside(work: Callable[..., None], *arguments: Any) -> None:
        # by a thread: the signal may have interrupted this one in the middle of the same, with a lock in its hand
        threading.Thread(target=work, args=arguments, daemon=True).start()

    def ask(number: int, frame: object) -> None:
        control.request_stop()
        signal.signal(number, signal.SIG_DFL)
        aside(say, asked)

    handlers: dict[int, Callable[[int, Any], None]] = {signal.SIGINT: ask, signal.SIGTERM: ask}
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        handlers[signal.SIGHUP] = ask
    if hasattr(signal, "SIGUSR1"):
        handlers[signal.SIGUSR1] = lambda *_: aside(control.request_save)
        handlers[signal.SIGUSR2] = lambda *_: aside(control.request_sample)
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def quiet_libraries(handler: logging.Handler, level: str) -> None:
    """What libraries log and warn of goes to the handler alone."""
    logging.captureWarnings(True)
    root = logging.getLogger()
    root.handlers.clear()
    root.setLevel(level.upper())
    root.addHandler(handler)
    for name in NOISY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)


@dataclass(frozen=True)
class Served:
    """What a job finds when its process is there before it and stays after it (serving.py): both directions, open.

    `kept`: what stays of one job for the next (tasks/kept.py).
    """

    say: Say
    control: Control
    kept: Any


@contextlib.contextmanager
def conversation(
    hello: Hello, *, events: bool, folder: JobFolder | None, log_level: str = "info", served: Served | None = None
) -> Iterator[tuple[Say, Control]]:
    """Open both directions for one job and close them again, whatever happens in between.

    `hello` is said first, before commands are listened to; after `done` or `failed` nothing more is said.
    """
    control = Control() if served is None else served.control
    if served is not None:
        outward, close = served.say, lambda: None
    elif events:
        outward, close = event_writer(take_stdout()), lambda: None
    else:
        from .screen import Screen

        screen = Screen()
        outward, close = while_it_lasts(screen.show), while_it_lasts(screen.close)
    quiet_libraries(folder.handler() if folder else logging.NullHandler(), log_level)

    lock, ended = threading.Lock(), False

    def say(event: Event) -> None:
        nonlocal ended
        with lock:
            if ended:
                return
            ended = isinstance(event, (Done, Failed))
            problem = "" if folder is None else folder.record(event)
            if problem:
                outward(Warning_(message=problem))
            outward(event)

    say(hello)
    if served is None and (events or STOP_WITH_STDIN in os.environ):
        listen(control, say)
    try:
        with signals_ask(control, say):
            yield say, control
    finally:
        close()
        if folder is not None:
            logging.getLogger().handlers.clear()
            folder.close()
