"""`python -m engine <verb> …`: from a command line to an exit status.

Reads the job, opens the conversation, runs the task, says how it ended. Nothing heavy is imported before the job has
been read, so that `--help` and mistakes answer at once.
"""

from __future__ import annotations

import importlib
import logging
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType

from .contract import cli
from .contract.errors import EngineError, as_failed
from .contract.events import Done, Failed, Hello
from .contract.job import Job
from .contract.options import Run

PROTOCOL = 1


def job_folder(job: Job, task: ModuleType) -> Path | None:
    """Where the job's record is kept: `--job_dir`, or `jobs/<time>-<verb>-<family>` where the task puts its results."""
    if job[Run].job_dir:
        return Path(job[Run].job_dir)
    home = getattr(task, "home", None)
    if home is None:
        return None
    name = "-".join(part for part in (time.strftime("%Y%m%d-%H%M%S"), job.command.verb, job.family) if part)
    folder = Path(home(job)) / "jobs" / name.replace(" ", "-")
    unique, number = folder, 1
    while unique.exists():
        number += 1
        unique = folder.with_name(f"{folder.name}-{number}")
    return unique


def print_failure(failure: Failed) -> None:
    """The one clear line for a job that could not even begin to talk."""
    print(f"error: {failure.message}", file=sys.stderr)
    if failure.hint:
        print(f"hint:  {failure.hint}", file=sys.stderr)


def _keep_traceback(failure: BaseException, *, has_log: bool) -> None:
    """A bug's traceback goes to the job's log; a job that keeps no record shows it."""
    if has_log:
        logging.getLogger(__name__).error("The job failed", exc_info=failure)
    else:
        traceback.print_exception(failure)


def run(job: Job) -> int:
    """Run a job to its end and return the exit status."""
    from . import __version__
    from .talk import JobFolder, conversation

    task = importlib.import_module(f".tasks.{job.command.module}", __package__)
    path = job_folder(job, task)
    folder = JobFolder(path, job.to_toml()) if path else None
    options = job[Run]
    with conversation(events=options.events, folder=folder, log_level=options.log_level) as (say, control):
        say(Hello(protocol=PROTOCOL, version=__version__, job=str(path or "")))
        try:
            message = task.run(job, say, control)
        except (Exception, KeyboardInterrupt) as failure:  # whatever it is, it becomes one event and one status
            event, status = as_failed(failure)
            if not isinstance(failure, EngineError):
                _keep_traceback(failure, has_log=folder is not None)
            say(event)
            return status
        say(Done(message=message or "", stopped=control.stop_requested))
        return 0


def main(argv: list[str] | None = None) -> int:
    """Parse, run, answer with the exit status. `argv` is what stands behind `python -m engine`."""
    try:
        job = cli.parse(sys.argv[1:] if argv is None else argv)
        return 0 if job is None else run(job)
    except EngineError as failure:
        event, status = as_failed(failure)
        if isinstance(event, Failed):
            print_failure(event)
        return status


if __name__ == "__main__":
    sys.exit(main())
