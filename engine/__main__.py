"""`python -m engine <verb> …`: from a command line to an exit status.

Reads the job, opens the conversation, runs the task and reports how it ended. Nothing heavy is imported before the job
has been read, so that `--help` and mistakes answer at once.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from . import processes, serving, streams
from .contract import cli
from .contract.errors import STATUS, EngineError, OptionError, Stopped, as_failed
from .contract.events import Control, Done, Failed, Hello, write
from .contract.files import clean_leftovers, in_the_way
from .contract.job import Job
from .contract.options import Processes, Run
from .talk import JobFolder, Served, conversation

SPINS = "10000"
"""How often an idle torch thread polls for work before it sleeps. GNU OpenMP's default of 300,000 is no faster on a
quiet CPU; beside other load, threads wait for each other through whole time slices, 50 times slower in one case."""
LARGE_PAGES = "1"
"""Torch asks for main memory in pages of 2 MiB. Touching fresh memory, which is most of what moving weights there
costs, is four times as fast (beside an H100: 7 to 8 GB/s instead of 2); where there are none, nothing changes."""
ALLOCATOR = "expandable_segments:True"
"""Lets freed pieces of GPU memory merge. Without it, gaps between tensors of different sizes cost a fifth more memory
in training (61.8 GiB for 50.5), and ended runs that a plan had just made fit."""


def results_folder(job: Job, task: ModuleType) -> Path | None:
    """The folder for a task's results; None for a task without any."""
    home = getattr(task, "home", None)
    folder: Path | None = None if home is None else home(job)
    return folder


def job_folder(job: Job, results: Path | None) -> Path | None:
    """The folder for the job's record: `--job_dir`, or `jobs/<time>-<verb>-<family>` beside the results."""
    if job[Run].job_dir:
        return Path(job[Run].job_dir)
    if results is None:
        return None
    name = "-".join(part for part in (time.strftime("%Y%m%d-%H%M%S"), job.command.verb, job.family) if part)
    folder = results / "jobs" / name.replace(" ", "-")
    unique, number = folder, 1
    while unique.exists():
        number += 1
        unique = folder.with_name(f"{folder.name}-{number}")
    return unique


def refuse_file(name: str, folder: Path) -> None:
    """OptionError if the option `name` should be a folder but a file is in its place."""
    obstacle = in_the_way(folder)
    if obstacle is not None:
        raise OptionError(
            f"--{name}: {obstacle} is a file, but a folder is needed there.",
            hint=f"Choose another --{name}, or move that file away.",
            names=(name,),
        )


def say_failure(failure: Failed, *, version: str, events: bool) -> None:
    """Report a job that failed before its conversation began; with `--events` as a complete, short conversation."""
    if events:
        for event in (Hello(version=version), failure):
            sys.stdout.write(write(event) + "\n")
        return
    print(f"error: {failure.message}", file=sys.stderr)
    if failure.hint:
        print(f"hint:  {failure.hint}", file=sys.stderr)


def _keep_traceback(failure: BaseException, *, has_log: bool) -> None:
    """Write a bug's traceback to the job's log, or to stderr if the job keeps no record."""
    if has_log:
        logging.getLogger(__name__).error("The job failed", exc_info=failure)
    else:
        traceback.print_exception(failure)


def run(job: Job, served: Served | None = None) -> int:
    """Run a job to its end and return the exit status. `served`: set in a process that stays (serving.py)."""
    if job.command.verb == serving.VERB:
        return serving.serve(run, _task(job))
    with processes.placed(job) as place:
        if place.number == 0:
            return lead(job, place, served)
        if Processes not in job:
            return 0  # this command runs in one process only
        return processes.follow(lambda: _task(job).run(job, lambda event: None, Control()), job[Run].log_level)


def _task(job: Job) -> ModuleType:
    return importlib.import_module(f".tasks.{job.command.module}", __package__)


def lead(job: Job, place: processes.Place, served: Served | None = None) -> int:
    """Run a job as its only process, or as process 0 of several, and return the exit status."""
    from . import __version__

    task = _task(job)
    kept = {} if served is None else serving.kept_for(task, served)
    results = results_folder(job, task)
    if results is not None:
        refuse_file(task.HOME, results)
        clean_leftovers(results)  # temporary files of killed runs
    if job[Run].job_dir:
        refuse_file("job_dir", Path(job[Run].job_dir))
    path = job_folder(job, results)
    flag = f"--{'job_dir' if job[Run].job_dir else getattr(task, 'HOME', '')}"
    folder = JobFolder(path, job.to_toml(), flag=flag) if path else None
    options = job[Run]
    hello = Hello(version=__version__, job=str(path or ""))
    talk = conversation(hello, events=options.events, folder=folder, log_level=options.log_level, served=served)
    with (
        talk as (say, control),
        processes.others(place, job, folder, say) as company,
    ):
        try:
            message = task.run(job, say, control, **kept)
        except Stopped as stop:
            say(Done(message=stop.message, stopped=True))
            return stop.exit_status
        except (Exception, KeyboardInterrupt) as failure:  # anything becomes one event and one status
            event, status = company.cause(*as_failed(failure))
            if not isinstance(failure, EngineError):
                _keep_traceback(failure, has_log=folder is not None)
            say(event)
            return status
        say(Done(message=message or "", stopped=control.stop_requested))
        return 0


def _set_up_torch() -> None:
    """Set torch's environment variables before it is imported, unless the person has set them."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", LARGE_PAGES)
    if sys.platform == "linux" and "PYTORCH_ALLOC_CONF" not in os.environ:  # its newer name
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", ALLOCATOR)


def main(argv: list[str] | None = None) -> int:
    """Parse, run and return the exit status. `argv`: the words after `python -m engine`."""
    from . import __version__

    words = sys.argv[1:] if argv is None else argv
    _set_up_torch()
    try:
        job = cli.parse(words)
        return 0 if job is None else run(job)
    except Exception as failure:  # before the conversation began
        event, status = as_failed(failure)
        if processes.place_around().number:
            return status  # process 0 reports the same
        if status == STATUS["bug"]:
            traceback.print_exception(failure)
            event = replace(event, hint="This is a bug in the engine: please report it, with the traceback above.")
        say_failure(event, version=__version__, events="--events" in words)
        return status


if __name__ == "__main__":
    streams.make_last()
    sys.exit(main())
