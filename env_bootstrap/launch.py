"""Handing over to the environment's Python: the engine, the demo, the tests.

On POSIX this process becomes the other one, so exit status, signals, terminal and working directory are simply its own.
Windows has no such thing: there a child is waited for, and Ctrl-C is left to it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import plan, status
from .extras import Extra
from .home import PACK, WINDOWS, Home
from .problems import Problem
from .processes import clean_environment

START = Path(__file__).resolve().with_name("start.py")


def require_python(home: Home, environment: Mapping[str, str]) -> str:
    """The environment's Python. Problem (exit 2) with the way out when there is none that works, by the quick look."""
    state = status.look(home, environment, quick=True)
    if not state.python:
        raise Problem("absent", f"The environment at {home.path} is {state.state}.", state.next)
    return state.python


def engine_command(python: str, arguments: Sequence[str]) -> list[str]:
    """The command line that runs `python -m engine ARGUMENTS` from any working directory."""
    return [python, str(START), "engine", *arguments]


def pytest_command(python: str, arguments: Sequence[str]) -> list[str]:
    """The command line that runs the pack's tests, in as many processes as tests/conftest.py finds room for (`-n`)."""
    return [python, "-m", "pytest", "-p", "no:cacheprovider", "-n", "auto", "--dist", "worksteal", *arguments]


def hand_over(command: Sequence[str], environment: Mapping[str, str], *, folder: Path | None = None) -> int:
    """Become `command`; returns (its exit status) only on Windows."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed by whoever started this
            with contextlib.suppress(OSError):  # nobody listens; the command has a word of its own to say on that
                stream.flush()
    clean = clean_environment(environment)
    if not WINDOWS:
        if folder is not None:
            os.chdir(folder)
        os.execve(command[0], list(command), clean)
    child = subprocess.Popen(list(command), env=clean, cwd=folder)
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            return child.wait()


def run_engine(home: Home, arguments: Sequence[str], *, environment: Mapping[str, str]) -> int:
    """`run -- …`: the engine's command line, in the person's working directory."""
    return hand_over(engine_command(require_python(home, environment), arguments), environment)


def run_tests(home: Home, arguments: Sequence[str], *, environment: Mapping[str, str]) -> int:
    """`test …`: pytest on the pack's tests."""
    return hand_over(pytest_command(require_python(home, environment), arguments), environment, folder=PACK)


def is_ready(home: Home, environment: Mapping[str, str], *, tests: bool = False, adding: Sequence[Extra] = ()) -> bool:
    """Whether `create`, or `add` of these packages, would have nothing to do."""
    return plan.current(home, environment, tests=tests, adding=adding) is not None
