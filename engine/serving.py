"""`serve`: a process that stays, and runs the jobs that it is told on stdin one after another.

Each runs as it would in a process of its own, with the same record in its folder, and speaks on the same stream: what
lies between a `hello` and the next `finished` is of one job. `run` names a job, `stop`, `save` and `sample` are for the
one that runs, the end of stdin stops it and ends the server. A job that fails does not take the server down, unless it
leaves the process in doubt: then the server says so and ends, and whoever started it starts another. Knows no task.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from .contract.errors import INTERRUPTED, STATUS, OptionError, as_failed
from .contract.events import Control, Done, Event, Failed, Finished, Hello, Order, Say, Warning_
from .contract.job import Job, changed, load_job
from .contract.options import Processes
from .talk import Served, event_writer, obey, orders, take_stdout

VERB = "serve"
HARMLESS = (STATUS["done"], STATUS["option"], STATUS["memory"], STATUS["disk"])
"""What a job may end with and the next one be run in the same process."""


def kept_for(task: ModuleType, served: Served | None) -> dict[str, Any]:
    """What a task's `run` is handed of the jobs before it. A task that keeps nothing finds the memory free."""
    if served is None:
        return {}
    if getattr(task, "KEEPS", False):
        return {"kept": served.kept}
    served.kept.clear()
    return {}


@dataclass
class _Ordered:
    """A job that was asked for."""

    job: str
    control: Control = field(default_factory=Control)
    told_to_stop: bool = False


class _Orders:
    """What was asked on stdin. Jobs wait in their order; other orders are for the first that has not finished."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._jobs: deque[_Ordered] = deque()
        self._ended = False
        self._news = threading.Condition()
        threading.Thread(target=self._listen, name="commands", daemon=True).start()

    def next(self) -> _Ordered | None:
        """The first job, when there is one; None when stdin has ended."""
        with self._news:
            self._news.wait_for(lambda: self._jobs or self._ended)
            return None if self._ended else self._jobs[0]

    def finished(self) -> None:
        """The first job is over."""
        with self._news:
            self._jobs.popleft()

    def _listen(self) -> None:
        for order in orders():
            with self._news:
                self._take(order)
        with self._news:
            self._ended = True
            for ordered in self._jobs:
                ordered.control.request_stop()
            self._news.notify()

    def _take(self, order: Order) -> None:
        if order.command == "run" and order.job:
            self._jobs.append(_Ordered(order.job))
            self._news.notify()
        elif order.command == "run":
            self._say(
                Warning_(message="`run` does not name a job. Write run and a job file, or a folder with a job.toml.")
            )
        elif self._jobs:
            obey(order, self._jobs[0].control, self._say)
            self._jobs[0].told_to_stop |= order.command == "stop"


def serve(run: Callable[[Job, Served], int], task: ModuleType) -> int:
    """Run jobs until stdin ends, and return the exit status. `task` is tasks/serve.py."""
    from . import __version__

    say = _one_at_a_time(event_writer(take_stdout()))
    say(Hello(version=__version__, job=VERB))
    asked, kept, done = _Orders(say), task.Kept(), 0
    try:
        while (ordered := asked.next()) is not None:
            with task.like_a_process_of_its_own():
                status = _run(ordered, run, Served(say=say, control=ordered.control, kept=kept))
            if status == STATUS["memory"]:
                kept.clear()
            by_signal = ordered.control.stop_requested and not ordered.told_to_stop
            leaving = status not in HARMLESS or by_signal
            asked.finished()
            done += 1
            say(Finished(job=ordered.job, status=status, leaving=leaving))
            if status not in HARMLESS:
                say(Failed(kind="bug", message="The last job has left the server in doubt, so it ends.",
                           hint="Start it again: the next job then begins in a fresh process."))  # fmt: skip
                return STATUS["bug"]
            if by_signal:
                break
    except KeyboardInterrupt:
        return INTERRUPTED
    say(Done(message=f"{done} jobs"))
    return STATUS["done"]


def _run(ordered: _Ordered, run: Callable[[Job, Served], int], served: Served) -> int:
    """The ordinary way of a job (__main__.py), mistakes in its file included."""
    from . import __version__

    try:
        return run(_job_at(ordered.job), served)
    except Exception as failure:  # the job did not come as far as its conversation
        event, status = as_failed(failure)
        if status == STATUS["bug"]:
            traceback.print_exception(failure)
        served.say(Hello(version=__version__, job=ordered.job))
        served.say(event)
        return status


def _job_at(path: str) -> Job:
    """The job of a file; of a folder, its `job.toml` with the record beside it. OptionError."""
    folder = Path(path) if Path(path).is_dir() else None
    job = load_job(Path(path) if folder is None else folder / "job.toml")
    if job.command.verb == VERB:
        raise OptionError(f"{path} is a job for `serve`, which a server cannot run.", "Name another job.")
    if Processes in job and (job[Processes].num_processes > 1 or job[Processes].chosen_gpus):
        raise OptionError(
            "A server runs jobs in its own process, on the GPU that it started with.",
            "Run this job by itself, or leave out --num_processes and --gpu_ids.",
            names=("num_processes", "gpu_ids"),
        )
    record = {} if folder is None else {"job_dir": str(folder)}
    return changed(job, {"events": True, **record})


def _one_at_a_time(say: Say) -> Say:
    lock = threading.Lock()

    def locked(event: Event) -> None:
        with lock:
            say(event)

    return locked
