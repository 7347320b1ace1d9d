"""Starting other programs: with a clean environment, watched line by line, and never left behind.

Knows nothing of pip or of what is installed.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

TICK_S = 0.2
TAIL_LINES = 200
GUARD = Path(__file__).resolve().with_name("guard.py")

# What would lead a Python or an installer to another environment than ours. Index, proxy and certificate settings stay.
DROPPED = frozenset(
    """PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONUSERBASE PYTHONEXECUTABLE PYTHONPLATLIBDIR PYTHONSAFEPATH PYTHONINSPECT
    PYTHONCASEOK PYTHONPYCACHEPREFIX __PYVENV_LAUNCHER__ VIRTUAL_ENV VIRTUAL_ENV_PROMPT
    PIP_TARGET PIP_PREFIX PIP_USER PIP_ROOT PIP_PYTHON PIP_REQUIRE_VIRTUALENV PIP_NO_DEPS PIP_DRY_RUN PIP_REQUIREMENT
    PIP_EDITABLE PIP_REPORT PIP_QUIET PIP_VERBOSE PIP_LOG PIP_IGNORE_INSTALLED
    UV_PYTHON UV_SYSTEM_PYTHON UV_PROJECT_ENVIRONMENT UV_TARGET UV_PREFIX""".split()
)
DROPPED_PREFIXES = ("CONDA_", "_CONDA_", "_CE_")


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """A copy for the engine's Python and its installers: no trace of the calling Python's environment, UTF-8."""
    kept = {
        name: value
        for name, value in environment.items()
        if name.upper() not in DROPPED and not name.upper().startswith(DROPPED_PREFIXES)
    }
    return {**kept, "PYTHONNOUSERSITE": "1", "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8"}


@dataclass(frozen=True)
class Ended:
    """A finished child: its exit status (128 + signal when one ended it) and the last lines it wrote."""

    status: int
    tail: list[str]


def output_of(command: Sequence[str], *, environment: Mapping[str, str], timeout_s: float = 30.0) -> str | None:
    """What a short command prints, None when it is missing, fails or hangs. For questions, not for work."""
    try:
        done = subprocess.run(
            list(command),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def _pump(stream: IO[bytes], lines: queue.Queue[str | None]) -> None:
    """Lines end at a carriage return too, as progress bars do."""
    rest = b""
    while chunk := os.read(stream.fileno(), 65536):
        *whole, rest = re.split(rb"[\r\n]+", rest + chunk)
        for line in whole:
            if line.strip():
                lines.put(line.decode("utf-8", "replace"))
    if rest.strip():
        lines.put(rest.decode("utf-8", "replace"))
    lines.put(None)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Closing the guard's stdin makes it end everything; if it does not, it is killed."""
    if child.stdin:
        with contextlib.suppress(OSError):
            child.stdin.close()
    try:
        child.wait(timeout=6.0)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def run_child(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
    on_tick: Callable[[], None] = lambda: None,
    lock: int | None = None,
) -> Ended:
    """Run to the end. `on_line` gets each line of its stdout and stderr, `on_tick` is called after each and
    at least five times a second.

    `lock` is a descriptor that stays open as long as the child lives. OSError when the program cannot be started.
    """
    guarded = [sys.executable, "-I", "-S", str(GUARD), *command]
    windows = os.name == "nt"
    child = subprocess.Popen(
        guarded,
        env=dict(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=not windows,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        pass_fds=() if windows or lock is None else (lock,),
    )
    lines: queue.Queue[str | None] = queue.Queue()
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    assert child.stdout is not None
    threading.Thread(target=_pump, args=(child.stdout, lines), daemon=True).start()
    try:
        while True:
            try:
                line = lines.get(timeout=TICK_S)
                if line is None:
                    break
                tail.append(line)
                on_line(line)
            except queue.Empty:
                pass
            on_tick()
        return Ended(child.wait(), list(tail))
    finally:
        _end(child)
