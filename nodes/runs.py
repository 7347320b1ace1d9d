"""What is known of one run: state, progress, numbers, previews, results; kept in its folder as it changes.

A run is one engine job started by a node; its id is the name of the job's folder. `run.json` there holds its state,
written whole at each change; the engine's own record holds the rest. `run.lock` is held until the run is over, so that
a second ComfyUI on the same output folder tells a live run from a dead one. Knows no ComfyUI and starts nothing.
Thread-safe: events come from the bridge, questions from the server, changes from the node.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from ..engine.contract.errors import DiskError
from ..engine.contract.events import (
    Artifact,
    Done,
    Event,
    Failed,
    Hello,
    Log,
    Metric,
    Plan,
    Preview,
    Progress,
    Resource,
    Stage,
    Warning_,
    write,
)
from ..engine.contract.files import write_text
from ..engine.contract.locks import hold, is_held, let_go

State = Literal["waiting", "running", "stopping", "done", "stopped", "failed"]
OVER = ("done", "stopped", "failed")
MOST_POINTS, MOST_RESOURCE_POINTS = 2000, 600
MOST_WAITING = 400
LOG_BYTES = 64 << 10
FORWARDED = (Metric, Preview, Artifact, Resource, Plan, Log, Warning_)
LONGEST_MESSAGE = 2000
LOCK, RECORD = "run.lock", "events.jsonl"


def thinned(points: list[Any], most: int) -> list[Any]:
    """At most `most` of them, evenly, the first and the last kept."""
    if len(points) <= most:
        return list(points)
    step = (len(points) - 1) / (most - 1)
    return [points[round(index * step)] for index in range(most)]


def at_work(folder: Path) -> dict[str, Any] | None:
    """Who is at work on the run of this folder: `process` and `machine` of its ComfyUI; None if nobody is.

    Empty if its ComfyUI is gone and its engine, which has noticed that, is still saving.
    """
    if not is_held(folder / LOCK):
        return {} if is_held(folder / RECORD) else None
    try:
        owner = json.loads((folder / LOCK).read_text(encoding="utf-8"))
        return {"process": int(owner["process"]), "machine": str(owner["machine"])}
    except (OSError, ValueError, KeyError, TypeError):  # locked, and about to be written
        return {"process": 0, "machine": "?"}


class Series:
    """Points of named curves, thinned as they grow: at most `most` per name."""

    def __init__(self, most: int):
        self._most = most
        self._points: dict[str, list[list[float]]] = {}

    def add(self, where: float, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            points = self._points.setdefault(name, [])
            points.append([where, value])
            if len(points) >= 2 * self._most:
                self._points[name] = thinned(points, self._most)

    def last(self) -> dict[str, float]:
        return {name: points[-1][1] for name, points in self._points.items()}

    def peak(self) -> dict[str, float]:
        return {
            name: max((value for _, value in points if not math.isnan(value)), default=math.nan)
            for name, points in self._points.items()
        }

    def as_json(self) -> dict[str, list[list[Any]]]:
        """Numbers that JSON lacks become "NaN", "Infinity", "-Infinity", as in the protocol."""
        return {
            name: [[where, _as_json(value)] for where, value in thinned(points, self._most)]
            for name, points in self._points.items()
        }


def _as_json(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


class Run:
    """One run. `take` gets every event; the page gets `summary` and `whole`."""

    def __init__(
        self, folder: Path, *, title: str, verb: str, family: str, node: str = "", prompt: str = "", workflow: str = ""
    ):
        self.folder, self.id = folder, folder.name
        self.title, self.verb, self.family, self.node, self.prompt = title, verb, family, node, prompt
        self.workflow = workflow  # its id: two workflows may have a node of the same number
        self.state: State = "waiting"
        self.elsewhere: dict[str, Any] | None = None  # `at_work` of a run that is not ours and under way
        self.reused = False
        self.started: float = time.time()
        self.ended: float | None = None
        self.shown: float = self.started  # when a node last showed it: a result that is used again is shown again
        self.stage = self.message = ""
        self.progress: Progress | None = None
        self.error: dict[str, str] | None = None
        self.metrics, self.resources = Series(MOST_POINTS), Series(MOST_RESOURCE_POINTS)
        self.previews: list[dict[str, Any]] = []
        self._pictures = 0  # number of previews so far, including those that were replaced
        self.artifacts: list[dict[str, str]] = []
        self.plan: dict[str, Any] | None = None  # the memory that it will take, as the engine worked it out
        self.step = 0
        self.lines: deque[str] = deque(maxlen=MOST_WAITING)
        self._held: int | None = None
        self._lock = threading.RLock()
        self._changed = True
        self._news: deque[dict[str, Any]] = deque(maxlen=MOST_WAITING)

    # ------------------------------------------------------------------------------------------------- what happens

    def take(self, event: Event, *, at: float | None = None) -> None:
        """Remember an event of the engine. `at`: its time, if it is read back."""
        with self._lock:
            self._changed = True
            if isinstance(event, Stage):
                self.stage, self.message, self.progress = event.name, event.message, None
            elif isinstance(event, Progress):
                self.progress = event
            elif isinstance(event, Metric):
                self.step = event.step
                self.metrics.add(event.step, event.values)
            elif isinstance(event, Resource):
                self.resources.add(at or time.time(), event.values)
            elif isinstance(event, Preview) and event.path:
                self._take_preview(event)
            elif isinstance(event, Artifact):
                self.artifacts.append({"kind": event.kind, **self._file(event.path)})
            elif isinstance(event, Plan):
                self.plan = json.loads(write(event))
            elif isinstance(event, Warning_):
                self.message = event.message
                self.lines.append(f"warning: {event.message}")
            elif isinstance(event, Log) and event.level != "debug":
                self.lines.append(event.message)
            elif isinstance(event, (Hello, Done, Failed)):
                self.message = getattr(event, "message", "")
            if isinstance(event, FORWARDED):
                self._news.append(self._told(event))

    def change(self, state: State, *, message: str | None = None, error: Mapping[str, str] | None = None) -> None:
        """Change the state, on disk too. Nothing changes once the run is over."""
        with self._lock:
            if self.state in OVER:
                return
            self.state, self._changed = state, True
            if message is not None:
                self.message = message
            if error is not None:
                self.error = dict(error)
            if state in OVER:
                self.ended = time.time()
            self.keep()
            if state in OVER:
                self._let_go()

    def claim(self) -> None:
        """Lock the run for this process until it is over. A disk without locks does not end the run."""
        with contextlib.suppress(OSError):
            about = {"process": os.getpid(), "machine": platform.node()}
            self._held = hold(self.folder / LOCK, json.dumps(about))

    def _let_go(self) -> None:
        if self._held is not None:
            let_go(self._held)
            self._held = None

    def show_on(self, node: str, prompt: str, workflow: str = "") -> None:
        """Show it on this node, which found its result again."""
        with self._lock:
            self.node, self.prompt, self.workflow = node, prompt, workflow
            self.reused, self.shown, self._changed = True, time.time(), True

    def keep(self) -> None:
        """Write `run.json`; a disk error does not end the run."""
        data = {**self.summary(), "progress": None}
        try:
            write_text(self.folder / "run.json", json.dumps(data, ensure_ascii=False, indent=1) + "\n", durable=False)
        except DiskError as problem:
            self.message = problem.message

    def news(self) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        """What the page does not know yet: the summary if it changed, and events."""
        with self._lock:
            summary = self.summary() if self._changed else None
            events, self._changed = list(self._news), False
            self._news.clear()
            return summary, events

    # ------------------------------------------------------------------------------------------------ what is told

    def summary(self) -> dict[str, Any]:
        progress = self.progress
        return {
            "id": self.id, "title": self.title, "verb": self.verb, "family": self.family, "node": self.node,
            "prompt": self.prompt, "workflow": self.workflow, "state": self.state, "elsewhere": self.elsewhere,
            "reused": self.reused, "started": self.started, "ended": self.ended, "shown": self.shown,
            "folder": str(self.folder), "stage": self.stage, "message": self.message,
            "progress": None if progress is None else json.loads(write(progress)), "error": self.error,
        }  # fmt: skip

    def whole(self) -> dict[str, Any]:
        text, offset = self.log()
        with self._lock:
            return {
                **self.summary(), "metrics": self.metrics.as_json(), "resources": self.resources.as_json(),
                "previews": list(self.previews), "artifacts": list(self.artifacts), "plan": self.plan,
                "log": {"text": text, "offset": offset},
            }  # fmt: skip

    def report(self) -> str:
        """What the job said in words, ending with its summary."""
        return "\n".join([*self.lines, self.message])

    def log(self, after: int | None = None) -> tuple[str, int]:
        """The log from byte `after` on (None: its last 64 KiB), and where it ends."""
        try:
            with open(self.folder / "log.txt", "rb") as stream:
                size = stream.seek(0, 2)
                start = max(0, size - LOG_BYTES) if after is None or after > size else max(after, size - (1 << 20))
                stream.seek(start)
                data = stream.read(size - start)
        except OSError:
            return "", 0
        return data.decode("utf-8", "replace"), start + len(data)

    def file(self, name: str) -> Path | None:
        """A file that the run made, by its name in the run's events."""
        with self._lock:
            for known in [*self.artifacts, *self.previews]:
                if known["name"] == name and Path(known["path"]).is_file():
                    return Path(known["path"])
        return None

    def _take_preview(self, event: Preview) -> None:
        """A passing preview replaces the one before it."""
        self._pictures += 1
        if event.passing:
            self.previews = [known for known in self.previews if known["path"] != event.path]
        about = {"label": event.label, "step": self.step, "passing": event.passing}
        self.previews.append({**self._file(event.path), "url": self._picture_url(event), **about})

    def _picture_url(self, event: Preview) -> str:
        """A different one each time for a passing preview: for the same URL a page would show the old picture."""
        url = self._file(event.path)["url"]
        return f"{url}&v={self._pictures}" if event.passing else url

    def _file(self, path: str) -> dict[str, str]:
        name = Path(path).name
        return {"path": path, "name": name, "url": f"/musubi/runs/{self.id}/file?name={quote(name)}"}

    def _told(self, event: Event) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(write(event))
        if data.get("path"):
            data["url"] = self._picture_url(event) if isinstance(event, Preview) else self._file(data["path"])["url"]
        if isinstance(event, (Log, Warning_)):
            data["message"] = event.message[:LONGEST_MESSAGE]
        if isinstance(event, Preview):
            data["step"] = self.step
        return {"run": self.id, "node": self.node, "prompt": self.prompt, "event": data}
