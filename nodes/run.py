"""Starts a program, passes on its output, ends it: the only file of the nodes that starts a process.

The program is a child in a process group of its own, watched by asyncio on one thread of ours, so that neither
ComfyUI's event loop nor its worker waits for a pipe. Its stdin is a pipe that stays open as long as we live: when
ComfyUI is killed it closes, and the engine stops and saves. Ending escalates from asking to terminating to killing the
group, and takes five seconds at most. Knows what an event is, nothing of ComfyUI, tasks and files beyond the log.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import re
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..engine.contract.events import Done, Event, Failed, Order, Progress, read, write_order
from .log_file import LogFile

WINDOWS = os.name == "nt"
ASK_S, TERMINATE_S, KILL_S = 2.5, 1.2, 0.8
"""How long to wait after each step of ending a child; together less than five seconds."""
LINGER_S = 0.5
"""How long to go on reading the pipes of an ended child, which a grandchild may hold open."""
POLL_S = 0.03
CHUNK = 1 << 16
LONGEST_EVENT = 8 << 20
LONGEST_LINE = 1 << 14
TAIL_LINES = 40


@dataclass(frozen=True, kw_only=True)
class Program:
    """What to start. `log`: the file for everything that it says, for the person."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    log: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How it ended: exit status (negative: the signal), its last event, and the last lines that were no events."""

    status: int
    last: Done | Failed | None = None
    tail: tuple[str, ...] = ()
    cancelled: bool = False


class Lines:
    """Cuts bytes into lines of text, whatever comes: half lines, invalid UTF-8, lines without end.

    With `bars` also at carriage returns, as progress bars use them. A line is (text, whether it is a bar's).
    """

    def __init__(self, *, longest: int, bars: bool = False):
        self._rest = b""
        self._longest = longest
        self._ends = re.compile(rb"\r\n|\n|\r" if bars else rb"\r?\n")
        self._skipping = False

    def feed(self, data: bytes) -> list[tuple[str, bool]]:
        """The lines that `data` completes."""
        found, start = [], 0
        whole = self._rest + data
        for end in self._ends.finditer(whole, max(0, len(self._rest) - 1)):  # the rest has been searched before
            if end.group() == b"\r" and end.end() == len(whole):
                break  # maybe half of \r\n
            found += self._line(whole[start : end.start()], end.group() == b"\r")
            start = end.end()
        self._rest = whole[start:]
        if len(self._rest) > self._longest:
            self._skipping, self._rest = True, b""
        return found

    def end(self) -> list[tuple[str, bool]]:
        """The rest, when nothing more comes."""
        rest, self._rest = self._rest, b""
        return self._line(rest.rstrip(b"\r\n"), False) if rest else []

    def _line(self, line: bytes, bar: bool) -> list[tuple[str, bool]]:
        if self._skipping or len(line) > self._longest:
            self._skipping = False
            return [("[a line that was too long was left out]", False)]
        text = line.decode("utf-8", "replace").strip("\r")
        return [(text, bar)] if text.strip() else []


_NUMBER = r"\d{1,18}(?:\.\d*)?"
_BAR = re.compile(
    rf"(?:(?P<label>[^|]{{0,200}}?):?\s+)?(?P<percent>\d{{1,3}})%\|[^|]*\|\s*(?P<done>{_NUMBER})(?P<scale>[kMGT]?)/"
    rf"(?P<total>{_NUMBER})(?P<scale2>[kMGT]?)\s+\[[\d:]+<(?P<eta>[\d:?]{{1,20}})"
    rf"(?:,\s*(?P<rate>{_NUMBER})(?P<unit>[^\],]*))?"
)
_SCALES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def bar_progress(line: str) -> Progress | None:
    """The progress in a bar of tqdm, `label:  40%|####      | 4/10 [00:02<00:03,  1.9it/s]`; None for other lines."""
    found = _BAR.match(line.strip()) if "%|" in line else None
    if found is None:
        return None
    eta = None
    if "?" not in found["eta"]:
        eta = 0.0
        for part in found["eta"].split(":"):
            eta = eta * 60 + int(part or 0)
    rate, unit = (float(found["rate"]) if found["rate"] else None), (found["unit"] or "").strip()
    if unit.startswith("s/"):
        rate, unit = (1 / rate if rate else None), unit[2:]
    unit = unit.removesuffix("/s")
    while unit[:1] in ("k", "M", "G") and len(unit) > 1 and rate is not None:
        rate, unit = rate * _SCALES[unit[0]], unit[1:]
    done = int(float(found["done"]) * _SCALES[found["scale"]])
    total = int(float(found["total"]) * _SCALES[found["scale2"]])
    return Progress(done=done, total=total, unit=unit or "it", rate=rate, eta_s=eta, label=found["label"] or "")


class Child:
    """One running program. `on_event` is called on the bridge's thread, for each event and each bar's progress."""

    def __init__(self, program: Program, on_event: Callable[[Event], None]):
        self.program = program
        self._on_event = on_event
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._last: Done | Failed | None = None
        self._input = -1
        self._early: list[bytes] = []  # commands that came before the process was started
        self._cancel: asyncio.Event | None = None
        self._asked = False  # whether it was already asked to stop, and had its time
        self._log = LogFile(program.log)
        self.cancelled = False
        self._future: concurrent.futures.Future[Ended] = asyncio.run_coroutine_threadsafe(self._run(), loop())

    def wait(self, timeout_s: float | None = None) -> Ended | None:
        """How it ended; None while it runs. OSError: it could not be started."""
        try:
            return self._future.result(timeout_s)
        except concurrent.futures.TimeoutError:
            return None

    def send(self, command: str, *, job: str = "") -> None:
        """Send a command of the protocol: stop, save, sample, run a job. It is lost if the child does not listen."""
        loop().call_soon_threadsafe(self._write, _line(Order(command, job)))

    def cancel(self, *, asked: bool = False) -> None:
        """End it, by whatever it takes, within five seconds. `asked`: it was asked already, and had its time."""
        self.cancelled, self._asked = True, asked
        if self._cancel is not None:
            loop().call_soon_threadsafe(self._cancel.set)

    def on_end(self, call: Callable[[], None]) -> None:
        """Call this when it has ended, on any thread; at once if it already has."""
        self._future.add_done_callback(lambda _: call())

    def log_to(self, path: Path) -> None:
        """From now on its output is another job's, which has its own log."""
        loop().call_soon_threadsafe(self._begin_log, LogFile(path))

    def _begin_log(self, log: LogFile) -> None:
        self._log = log
        self._tail.clear()

    async def heard_out(self) -> None:
        """Wait until its output so far, on either pipe, is in the log. On the bridge's thread."""
        await asyncio.sleep(POLL_S)
        await self._log.flush()

    def tail(self) -> tuple[str, ...]:
        """The last lines that were no events."""
        return tuple(self._tail)

    def _write(self, data: bytes) -> None:
        if self._input < 0:
            self._early.append(data)
            return
        with contextlib.suppress(OSError):
            os.write(self._input, data)

    async def _run(self) -> Ended:
        self._cancel = asyncio.Event()
        if self.cancelled:
            self._cancel.set()
        child = await self._start()
        assert child.stdout is not None and child.stderr is not None
        for data in self._early:
            self._write(data)
        readers = [
            asyncio.create_task(self._pump(child.stdout, Lines(longest=LONGEST_EVENT), self._event_line)),
            asyncio.create_task(self._pump(child.stderr, Lines(longest=LONGEST_LINE, bars=True), self._stray_line)),
        ]
        ending = asyncio.create_task(self._end_when_cancelled(child))
        try:
            await _exit_of(child)
            await asyncio.wait(readers, timeout=LINGER_S)
        finally:
            ending.cancel()
            for reader in readers:
                reader.cancel()
            await self._kill_group(child.pid)
            self._close_input()
            await self._log.close()
        return Ended(status=child.returncode or 0, last=self._last, tail=self.tail(), cancelled=self.cancelled)

    async def _start(self) -> asyncio.subprocess.Process:
        # A pipe of our own: asyncio would hand the child a socket, which env_bootstrap does not take for a parent.
        theirs, self._input = os.pipe()
        if not WINDOWS:
            os.set_blocking(self._input, False)
        try:
            return await asyncio.create_subprocess_exec(
                *self.program.argv,
                stdin=theirs,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=self.program.folder,
                env=dict(self.program.environment),
                start_new_session=not WINDOWS,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except BaseException:
            self._close_input()
            raise
        finally:
            os.close(theirs)

    async def _pump(self, stream: asyncio.StreamReader, lines: Lines, take: Callable[[str, bool], None]) -> None:
        while data := await stream.read(CHUNK):
            for text, bar in lines.feed(data):
                take(text, bar)
            await self._log.flush()
        for text, bar in lines.end():
            take(text, bar)
        await self._log.flush()

    def _event_line(self, text: str, bar: bool) -> None:
        try:
            event = read(text)
        except ValueError:
            self._stray_line(text, False)
            return
        if isinstance(event, (Done, Failed)):
            self._last = event
        self._log.event(event)
        self._on_event(event)

    def _stray_line(self, text: str, bar: bool) -> None:
        text = text[:LONGEST_LINE]
        progress = bar_progress(text)
        if progress is not None:
            self._on_event(progress)
        if progress is None or not bar:
            self._tail.append(text)
            self._log.line(text)

    async def _end_when_cancelled(self, child: asyncio.subprocess.Process) -> None:
        assert self._cancel is not None
        await self._cancel.wait()
        if not self._asked:
            self._write(_line(Order("stop")))
            if await _gone(child, ASK_S):
                return
        if not WINDOWS:
            _signal_group(child.pid, signal.SIGTERM)
            if await _gone(child, TERMINATE_S):
                return
        await self._kill_group(child.pid)
        await _gone(child, KILL_S)

    async def _kill_group(self, pid: int) -> None:
        if not WINDOWS:
            _signal_group(pid, signal.SIGKILL)
            return
        with contextlib.suppress(OSError):
            killer = await asyncio.create_subprocess_exec(
                "taskkill", "/T", "/F", "/PID", str(pid), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            await killer.wait()

    def _close_input(self) -> None:
        if self._input >= 0:
            os.close(self._input)
            self._input = -1


def _line(order: Order) -> bytes:
    return f"{write_order(order)}\n".encode()


async def _exit_of(child: asyncio.subprocess.Process) -> None:
    # not child.wait(): in some versions of Python it waits for the pipes too, which a grandchild may hold open
    while child.returncode is None:
        await asyncio.sleep(POLL_S)


async def _gone(child: asyncio.subprocess.Process, timeout_s: float) -> bool:
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(_exit_of(child), timeout_s)
    return child.returncode is not None


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


# --------------------------------------------------------------------------------------------- the bridge's own thread


@dataclass
class _Bridge:
    loop: asyncio.AbstractEventLoop | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


_bridge = _Bridge()


def loop() -> asyncio.AbstractEventLoop:
    """The event loop of the bridge, on a thread that is started at first use."""
    with _bridge.lock:
        if _bridge.loop is None:
            # On Windows a policy that ComfyUI-Manager may set has no subprocesses, so the kind is not left to chance.
            _bridge.loop = getattr(asyncio, "ProactorEventLoop", asyncio.new_event_loop)()
            threading.Thread(target=_bridge.loop.run_forever, name="musubi bridge", daemon=True).start()
        return _bridge.loop


gpu = threading.Lock()
"""Held while a program of ours is on the GPU: one at a time."""
