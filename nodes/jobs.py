"""From a job to a finished run: folder, environment, GPU, waiting, and the message if it fails.

Runs in ComfyUI's worker thread and blocks it, which is what keeps a second node off the GPU; ComfyUI's server thread
stays free. Checks ten times a second whether the person pressed Cancel.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any

from ..engine.contract import commands
from ..engine.contract.errors import DiskError, EngineError, OptionError
from ..engine.contract.events import Done, Failed, Warning_
from ..engine.contract.files import write_text
from ..engine.contract.job import Job, make_job
from ..engine.contract.schema import listed
from . import allowed, environment, host, paths, places, preferences, run, show, words
from .orders import Orders
from .records import Runs
from .runs import Run
from .spec import Call
from .workers import ENDING_S, Turn, bench

TICK_S = 0.1
SHOWN_LINES = 15
SIGKILL = -9
LEAST_FREE_MIB = 1024
runs = Runs()


class JobFailed(EngineError):
    """A job that did not succeed, in the engine's own words."""


def job_of(verb: str, family: str | None, values: Mapping[str, Any]) -> Job:
    """The checked job. OptionError names the widget."""
    command = commands.find(verb)
    known = listed(commands.sections_of(command, family))
    ours = {name: value for name, value in allowed.DEFAULTS.items() if name in known}
    return make_job(command, family, {"log_level": preferences.load().log_level, **ours, **values})


def run_job(
    call: Call, job: Job, *, uses_gpu: bool = True, on_artifact: Callable[[str, str], None] | None = None
) -> Run:
    """Run a job to its end. Raises JobFailed, environment.Missing, or ComfyUI's interruption.

    The run is `stopped` if the person pressed Stop and save: what it made is kept. `on_artifact` gets kind and path of
    each finished file, in this thread.
    """
    this = runs.begin(
        paths.jobs(), title=call.node.title, verb=job.command.verb, family=job.family or "", node=call.node_id,
        prompt=call.prompt_id, workflow=call.workflow_id,
    )  # fmt: skip
    orders = Orders()
    runs.control(this, orders)
    try:
        _keep_workflow(this, call)
        if not uses_gpu:
            return _run(this, orders, job, on_artifact or _ignore)
        with on_gpu(this, orders, host.raise_interrupted, unwanted=host.interrupted, for_worker=_may_stay(job)):
            host.unload_models()
            return _run(this, orders, job, on_artifact or _ignore)
    except EngineError as problem:
        this.change("failed", error={"kind": problem.kind, "message": problem.message, "hint": problem.hint})
        raise
    except BaseException as problem:  # ComfyUI's interruption is one; whatever it is, no run stays "running"
        this.change("stopped" if host.is_interruption(problem) else "failed", message="Cancelled.")
        raise
    finally:
        runs.control(this, None)
        show.tell(this)


def _keep_workflow(this: Run, call: Call) -> None:
    if call.workflow is not None:
        write_text(this.folder / "workflow.json", json.dumps(call.workflow), durable=False)  # ASCII holds any text


def _may_stay(job: Job) -> bool:
    """Whether the job's engine may stay afterwards: the next generation can use the models that this one loads."""
    return job.command.verb == places.GENERATE and preferences.load().keep_alive > 0


@contextlib.contextmanager
def on_gpu(
    this: Run, orders: Orders, give_up: Callable[[], object], *, unwanted: Callable[[], bool] = lambda: False,
    for_worker: bool = False,
) -> Iterator[None]:  # fmt: skip
    """Have the GPU for this run in this block, with no other program of ours on it.

    Waits for it; `give_up` raises, and is called when the run is told to end meanwhile, or `unwanted`. An engine that
    stayed leaves, unless the run is `for_worker`.
    """
    while not run.gpu.acquire(timeout=TICK_S):
        if not this.message:
            this.change("waiting", message="Waiting for another run to give up the GPU.")
        show.tell(this)
        if orders.to_end or unwanted():
            give_up()
    try:
        if orders.to_end:  # it was told so as the GPU became free
            give_up()
        if not for_worker:
            bench.clear()
        yield
    finally:
        run.gpu.release()


def _ignore(kind: str, path: str) -> None:
    pass


def _run(this: Run, orders: Orders, job: Job, on_artifact: Callable[[str, str], None]) -> Run:
    write_text(this.folder / "job.toml", job.to_toml())
    with (_in_worker if _may_stay(job) else _in_engine)(this, job) as child, orders.to(child):
        this.change("running", message="The engine is starting.")
        files = _new_files(this)
        try:
            ended = _wait(this, child, partial(_hand_on, this, files, on_artifact))
        finally:
            with contextlib.suppress(OSError):  # one that never started has nothing to be ended
                if child.wait(0) is None:  # an exception is on its way out: nothing may stay behind
                    child.cancel()
                    _tell_saved(this, child.wait(ENDING_S))
            _hand_on(this, files, on_artifact)  # what it saved while it was being ended
    return _judged(this, ended)


@contextlib.contextmanager
def _in_engine(this: Run, job: Job) -> Iterator[run.Child]:
    """The job in an engine of its own."""
    job_file = str(this.folder / "job.toml")
    arguments = [*job.name.split(), "--config_file", job_file, "--job_dir", str(this.folder), "--events"]
    program = environment.engine_program(arguments, folder=paths.work(), log=this.folder / "log.txt")
    yield run.Child(program, this.take)


@contextlib.contextmanager
def _in_worker(this: Run, job: Job) -> Iterator[Turn]:
    """The job in the engine that stayed, or in a new one, which then waits for the next job."""
    worker = bench.take(environment.engine_program(["serve"], folder=paths.work(), log=None))
    turn = worker.run(this.folder, this.take)
    try:
        yield turn
    finally:
        minutes = preferences.load().keep_alive
        if turn.stays and minutes:
            _give_way_to_comfyui()
            bench.put(worker, minutes)
        else:
            worker.end()


@cache
def _give_way_to_comfyui() -> None:
    """From now on an engine that only waits is ended when ComfyUI needs memory."""
    host.when_memory_is_wanted(lambda: None if run.gpu.locked() else bench.clear())


def _new_files(this: Run) -> Iterator[list[tuple[str, str]]]:
    """Yields each time the files (kind, path) that were finished since the last time."""
    seen = 0
    while True:
        found = this.artifacts[seen:]
        seen += len(found)
        yield [(artifact["kind"], artifact["path"]) for artifact in found]


def _hand_on(this: Run, files: Iterator[list[tuple[str, str]]], on_artifact: Callable[[str, str], None]) -> None:
    for kind, path in next(files):
        try:
            on_artifact(kind, path)
        except DiskError as problem:  # must not end the job, which goes on making files
            this.take(Warning_(message=problem.message))


def _wait(this: Run, child: run.Child | Turn, hand_on: Callable[[], object]) -> run.Ended:
    while True:
        try:
            ended = child.wait(TICK_S)
        except OSError as problem:
            raise JobFailed(f"The engine could not be started: {problem}.", _mend()) from problem
        hand_on()
        show.tell(this)
        if ended is not None:
            return ended
        if host.interrupted():
            this.change("stopping", message="Cancelled.")
            show.tell(this)
            host.raise_interrupted()


def _mend() -> str:
    return "Repair the environment: python -m env_bootstrap repair"


def _judged(this: Run, ended: run.Ended) -> Run:
    """The run as it ended. Raises JobFailed with the engine's message, never a bare exit status."""
    if ended.cancelled:  # the page's Cancel; ComfyUI's own has raised already
        _tell_saved(this, ended)
        host.raise_interrupted()
    if isinstance(ended.last, Failed):
        raise _failed(this, ended.last, ended)
    if isinstance(ended.last, Done) and ended.status == 0:
        this.change("stopped" if ended.last.stopped else "done", message=ended.last.message)
        return this
    raise JobFailed(_unsaid(ended), _tail(this, ended))


def _tell_saved(this: Run, ended: run.Ended | None) -> None:
    """If a cancelled engine had the time to finish and save, show its own message instead of "Cancelled."."""
    if ended is not None and isinstance(ended.last, Done):
        this.change("stopped", message=ended.last.message)


def _failed(this: Run, failure: Failed, ended: run.Ended) -> JobFailed:
    problem = JobFailed(words.of_node(failure.message), words.of_node(failure.hint))
    problem.kind = failure.kind
    if failure.kind == "bug":
        problem.hint = f"{problem.hint}\n{_tail(this, ended)}"
    return problem


def _unsaid(ended: run.Ended) -> str:
    if ended.status == SIGKILL:
        return "The engine was killed from outside, most likely by the system because main memory was full."
    if ended.status < 0:
        return f"The engine crashed (signal {-ended.status})."
    if ended.status == 0:
        return "The engine ended without saying that it is done."
    return f"The engine ended with status {ended.status} without saying why."


def _tail(this: Run, ended: run.Ended) -> str:
    lines = "\n".join(ended.tail[-SHOWN_LINES:])
    return f"Its last lines:\n{lines}\nThe whole log: {this.folder / 'log.txt'}" if lines else f"Log: {this.folder}"


def as_error(problem: EngineError) -> Exception:
    """The exception that ComfyUI shows in its dialog."""
    message = words.of_node(problem.message)
    hint = words.of_node(problem.hint)
    whole = f"{message}\n\n{hint}" if hint else message
    return ValueError(whole) if isinstance(problem, OptionError) else RuntimeError(whole)


def elapsed_s(this: Run) -> float:
    return (this.ended or time.time()) - this.started
