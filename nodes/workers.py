"""The engine that stays after a job for the next one of its kind, for as many minutes as the person allows.

There is at most one, and only the holder of the GPU uses it. It is ended when its time is over, when another kind of
job needs the GPU, when ComfyUI needs GPU memory, and when settings change; when ComfyUI itself is killed, its stdin
ends and it exits. A `Turn` can be waited for like a `run.Child`. Starts nothing itself.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

from ..engine.contract.events import Done, Event, Failed, Finished
from . import run
from .run import Child, Ended, Program

ENDING_S = run.ASK_S + run.TERMINATE_S + run.KILL_S + 2 * run.LINGER_S


class Turn:
    """One job in a worker, with `wait`, `send` and `cancel` as of a child that runs only this job."""

    def __init__(self, child: Child, on_event: Callable[[Event], None]):
        self._child, self._on_event = child, on_event
        self._last: Done | Failed | None = None
        self._status: int | None = None
        self._finishing: asyncio.Future[None] | None = None  # a task without a reference may be garbage-collected
        self._ended: concurrent.futures.Future[Ended] = concurrent.futures.Future()
        self._lock = threading.Lock()
        self.cancelled = False
        self.stays = False  # whether the worker takes another job
        child.on_end(self._child_ended)

    def wait(self, timeout_s: float | None = None) -> Ended | None:
        """How the job ended; None while it runs. OSError: the worker could not be started."""
        try:
            return self._ended.result(timeout_s)
        except concurrent.futures.TimeoutError:
            return None

    def send(self, command: str) -> None:
        """Stop, save or sample."""
        self._child.send(command)

    def cancel(self) -> None:
        """End the job within five seconds; the worker is ended with it, unless it obeys in time."""
        self.cancelled = True
        self._child.send("stop")
        run.loop().call_soon_threadsafe(run.loop().call_later, run.ASK_S, self._end_worker)

    def take(self, event: Event) -> None:
        """Take in an event of the worker while this is its job; on the bridge's thread."""
        if isinstance(event, (Done, Failed)):
            self._last = event
        self._on_event(event)

    def finish(self, event: Finished) -> None:
        """Take in the job's last event; the log is complete a moment later."""
        self._status, self.stays = event.status, not event.leaving
        self._finishing = asyncio.ensure_future(self._finish(event.status))

    async def _finish(self, status: int) -> None:
        await self._child.heard_out()
        self._end(status)

    def _end_worker(self) -> None:
        if not self._ended.done():
            self._child.cancel(asked=True)

    def _end(self, status: int) -> None:
        with self._lock:
            if not self._ended.done():
                ended = Ended(status=status, last=self._last, tail=self._child.tail(), cancelled=self.cancelled)
                self._ended.set_result(ended)

    def _child_ended(self) -> None:
        try:
            ended = self._child.wait(0)
        except OSError as problem:
            with self._lock:
                self._ended.set_exception(problem)
            return
        assert ended is not None
        self._end(ended.status if self._status is None else self._status)


class Worker:
    """An engine that runs `serve`."""

    def __init__(self, program: Program):
        self.program = program
        self._turn: Turn | None = None
        self._child = Child(program, self._heard)

    def run(self, folder: Path, on_event: Callable[[Event], None]) -> Turn:
        """Begin the job whose `job.toml` is in this folder. The one before it must have ended."""
        self._child.log_to(folder / "log.txt")
        self._turn = turn = Turn(self._child, on_event)
        self._child.send("run", job=str(folder))
        return turn

    @property
    def alive(self) -> bool:
        return self._child.wait(0) is None

    def end(self) -> None:
        """End it, and wait until nothing of it is left; it has no job to save."""
        self._child.cancel(asked=True)
        with contextlib.suppress(OSError):  # one that never started needs no ending
            self._child.wait(ENDING_S)

    def _heard(self, event: Event) -> None:
        turn = self._turn
        if turn is None:
            return
        if isinstance(event, Finished):
            self._turn = None
            turn.finish(event)
        else:
            turn.take(event)


class Bench:
    """Where a worker without a job waits for its next one. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: Worker | None = None
        self._timer: threading.Timer | None = None

    def take(self, program: Program) -> Worker:
        """The worker that waits, if it was started from the same program; else a new one."""
        worker = self._leave()
        if worker is not None and worker.program == program and worker.alive:
            return worker
        if worker is not None:
            worker.end()
        return Worker(program)

    def put(self, worker: Worker, minutes: float) -> None:
        """Let a worker wait for so many minutes."""
        with self._lock:
            self._waiting = worker
            self._timer = threading.Timer(60 * minutes, self.clear, (worker,))
            self._timer.daemon = True
            self._timer.start()

    def clear(self, only: Worker | None = None) -> None:
        """End the worker that waits; with `only`, if it is this one."""
        worker = self._leave(only)
        if worker is not None:
            worker.end()

    def _leave(self, only: Worker | None = None) -> Worker | None:
        with self._lock:
            if only not in (None, self._waiting):
                return None
            if self._timer is not None:
                self._timer.cancel()
            worker, self._waiting, self._timer = self._waiting, None, None
            return worker


bench = Bench()
