"""The engine's environment as the nodes see it: whether it exists, its Python, and creating it when the person asks.

env_bootstrap creates and repairs it, started here as a program with `--events`, so that a page shows the progress; that
never happens by itself.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.contract.errors import EngineError
from ..engine.contract.events import Event, Failed, Log, Progress, Stage, Warning_
from ..env_bootstrap import home as homes
from ..env_bootstrap import launch, status
from ..env_bootstrap.processes import clean_environment
from . import host, preferences, run, show, workers

ACTIONS = ("create", "repair")
TELL_S = 0.2


class Missing(EngineError):
    """The engine has no environment that works. The page then offers to set it up."""

    kind = "environment"


def surroundings() -> dict[str, str]:
    """The environment variables for everything that we start: without ComfyUI's Python, with our settings."""
    chosen = preferences.load()
    found = clean_environment(os.environ)
    if chosen.home:
        found["MUSUBI_HOME"] = chosen.home
    if chosen.gpu != "auto":
        found["CUDA_VISIBLE_DEVICES"] = "" if chosen.gpu == "cpu" else chosen.gpu
    found.setdefault("COMFYUI_PATH", str(Path(host.folder_paths().__file__).resolve().parent))
    return found


def look(*, quick: bool = True) -> status.Status:
    """The state of the environment; the quick look takes milliseconds."""
    variables = surroundings()
    return status.look(homes.find_home(variables), variables, quick=quick)


def engine_program(arguments: list[str], *, folder: Path, log: Path | None) -> run.Program:
    """The program that runs the engine with these arguments. Missing, with what to press: there is no environment."""
    found = look()
    if not found.python:
        what = {"absent": "is not set up yet", "incomplete": "is only partly set up", "broken": "is broken"}
        raise Missing(
            f"The engine's environment {what.get(found.state, found.state)} ({found.home}).",
            "Press Set up in the Musubi Tuner tab of the sidebar, or run in a terminal, in the pack's folder: "
            f"python -m env_bootstrap {'repair' if found.state == 'broken' else 'create'}",
        )
    argv = launch.engine_command(found.python, arguments)
    return run.Program(argv=tuple(argv), environment=surroundings(), folder=folder, log=log)


@dataclass
class _Making:
    child: run.Child
    action: str
    state: dict[str, Any]


class Maker:
    """Creates or repairs the environment, one at a time; sends every page the progress."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._making: _Making | None = None
        self._failed: dict[str, Any] | None = None

    def state(self) -> dict[str, Any]:
        """For `GET /musubi/environment`."""
        with self._lock:
            if self._making is not None:
                return dict(self._making.state)
            failed = self._failed
        found = look()
        state = {"ready": "ready", "outdated": "ready", "broken": "broken"}.get(found.state, "missing")
        words = {"message": "; ".join(found.reasons), "hint": found.next} if found.state == "broken" else {}
        if failed is not None and found.state != "ready":
            words = {"message": failed["message"], "hint": failed["hint"]}
        facts = {"home": found.home, "python": found.python_version, "torch": found.torch, "log": found.log}
        return {**_told(state, **words), "detail": found.state, **facts}

    def begin(self, action: str) -> dict[str, Any]:
        """Start `create` or `repair`, unless one is under way."""
        with self._lock:
            if self._making is not None:
                return dict(self._making.state)
            program = run.Program(
                argv=(sys.executable, str(homes.PACK / "env_bootstrap"), action, "--events"),
                environment=surroundings(),
                folder=homes.PACK,
            )
            workers.bench.clear()  # it runs in the environment that is to be changed
            self._failed = None
            making = _Making(run.Child(program, self._take), action, _told("making", message="Starting"))
            self._making = making
        threading.Thread(target=self._watch, args=(making,), name="musubi environment", daemon=True).start()
        return dict(making.state)

    def cancel(self) -> None:
        with self._lock:
            if self._making is not None:
                self._making.child.cancel()

    def _take(self, event: Event) -> None:
        with self._lock:
            if self._making is None:
                return
            state = self._making.state
            if isinstance(event, Stage):
                state.update(stage=event.name, message=event.message)
            elif isinstance(event, Progress):
                state.update(done=event.done, total=event.total, message=event.label or state["message"])
            elif isinstance(event, (Log, Warning_)):
                state["log_line"] = event.message

    def _watch(self, making: _Making) -> None:
        sent: dict[str, Any] = {}
        while True:
            try:
                ended = making.child.wait(TELL_S)
            except OSError as problem:
                ended = run.Ended(status=70, last=Failed(kind="disk", message=str(problem)))
            with self._lock:
                now = dict(making.state)
            if now != sent:
                sent = now
                show.environment(now)
            if ended is not None:
                break
        with self._lock:
            self._making = None
            if isinstance(ended.last, Failed):
                self._failed = {"message": ended.last.message, "hint": ended.last.hint, "at": time.time()}
            elif ended.status != 0 and not ended.cancelled:
                self._failed = {"message": "\n".join(ended.tail[-5:]) or f"It ended with status {ended.status}.",
                                "hint": "Look at the log, and try again.", "at": time.time()}  # fmt: skip
        show.environment(self.state())


def _told(state: str, **more: Any) -> dict[str, Any]:
    base: Mapping[str, Any] = {"stage": "", "done": 0, "total": 100, "message": "", "hint": "", "log_line": ""}
    return {"state": state, **base, **more}


maker = Maker()
