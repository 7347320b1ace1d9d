"""All runs: those of this server, and those whose folders are still there, read back as they were.

A second ComfyUI may share the output folder: locks tell its live runs from those of a server that died; they are only
shown. Knows the files of a run; what they mean is in runs.py. Thread-safe.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..engine.contract.events import Event, Resource, read
from ..engine.contract.files import disk_error
from .orders import Orders
from .runs import OVER, RECORD, Run, at_work

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,119}")
MOST_RUNS = 200
REMOVED = ".removed"


class Runs:
    """The runs of this server, and those whose folders are still there."""

    def __init__(self) -> None:
        self._live: dict[str, Run] = {}
        self._controls: dict[str, Orders] = {}
        self._lock = threading.Lock()

    def begin(
        self, folder: Path, *, title: str, verb: str, family: str, node: str, prompt: str, workflow: str = ""
    ) -> Run:
        """A new run, its folder `<time>-<verb>-<family>` below `folder`. DiskError."""
        name = "-".join(part for part in (time.strftime("%Y%m%d-%H%M%S"), verb.replace(" ", "-"), family) if part)
        with self._lock:
            run = Run(
                _new_folder(folder, name), title=title, verb=verb, family=family, node=node, prompt=prompt,
                workflow=workflow,
            )  # fmt: skip
            self._live[run.id] = run
        run.claim()  # before it is on record, so that nobody finds it without an owner
        run.keep()
        return run

    def again(
        self, folder: Path, run_id: str, *, title: str, verb: str, family: str, node: str, prompt: str,
        workflow: str = "",
    ) -> Run:  # fmt: skip
        """The run that made a result, shown on the node that found the result; a new one if it was removed."""
        run = self.get(folder, run_id)
        if run is None:
            run = self.begin(folder, title=title, verb=verb, family=family, node=node, prompt=prompt, workflow=workflow)
            run.change("done", message="Found the result of an earlier run.")
        with self._lock:
            self._live[run.id] = run
        run.show_on(node, prompt, workflow)
        return run

    def control(self, run: Run, orders: Orders | None) -> None:
        """Where commands for this run go; None when it is over."""
        with self._lock:
            if orders is None:
                self._controls.pop(run.id, None)
            else:
                self._controls[run.id] = orders

    def orders(self, run_id: str) -> Orders | None:
        with self._lock:
            return self._controls.get(run_id)

    def get(self, folder: Path, run_id: str, *, series: bool = True) -> Run | None:
        """A run by its id, live or read back; None if it is unknown or not an id at all.

        Without `series` a run that is read back has only its summary and its log, which is fast.
        """
        with self._lock:
            if run_id in self._live:
                return self._live[run_id]
        if not ID.fullmatch(run_id):
            return None
        return read_back(folder / run_id, series=series)

    def summaries(self, folder: Path) -> list[dict[str, Any]]:
        """All runs, newest first."""
        with self._lock:
            live = {run.id: run.summary() for run in self._live.values()}
        found = [live.get(place.name) or stored(place) for place in folders(folder)]
        kept = sorted((run for run in found if run), key=lambda run: (run["started"], run["id"]), reverse=True)
        return kept[:MOST_RUNS]

    def newest(self, folder: Path) -> Run | None:
        """The run that began last; None if there is none."""
        listed = self.summaries(folder)
        return self.get(folder, listed[0]["id"]) if listed else None

    def remove(self, folder: Path, run: Run) -> None:
        """Take a finished run off the list: its folder is moved, its results are not touched."""
        with self._lock:
            self._live.pop(run.id, None)
        (folder / REMOVED).mkdir(exist_ok=True)
        target, number = folder / REMOVED / run.id, 1
        while target.exists():
            number += 1
            target = folder / REMOVED / f"{run.id}-{number}"
        shutil.move(run.folder, target)


def _new_folder(folder: Path, name: str) -> Path:
    """Create a folder of this name, with a number if it exists: another ComfyUI may create it at the same moment.
    DiskError."""
    unique, number = folder / name, 1
    while True:
        try:
            unique.mkdir(parents=True)
            return unique
        except OSError as error:
            if not unique.exists():
                raise disk_error(unique, error) from error
        number += 1
        unique = folder / f"{name}-{number}"


def folders(folder: Path) -> Iterable[Path]:
    try:
        return [place for place in folder.iterdir() if (place / "run.json").is_file()]
    except OSError:
        return []


def stored(place: Path) -> dict[str, Any] | None:
    """The summary in `run.json`. A run that was under way has failed if its server died; else it is `elsewhere`."""
    try:
        data = json.loads((place / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(data, dict) or not isinstance(data.get("started"), (int, float)):
        return None
    data["id"], data["folder"] = place.name, str(place)
    data["elsewhere"] = None if data.get("state") in OVER else at_work(place)
    if data["elsewhere"] is not None:
        data["ended"] = None
    elif data.get("state") not in OVER:
        data["state"] = "failed"
        data["ended"] = data.get("ended") or _modified(place / RECORD) or data["started"]
        data["error"] = {
            "kind": "stopped", "message": "ComfyUI ended while this run was under way.",
            "hint": "Queue the workflow again: a training goes on where it stopped.",
        }  # fmt: skip
    return data


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def read_back(place: Path, *, series: bool = True) -> Run | None:
    """A run of another server, with its series; None if the folder is not a run's."""
    data = stored(place)
    if data is None:
        return None
    texts = {name: str(data.get(name) or "") for name in ("title", "verb", "family", "node", "prompt", "workflow")}
    run = Run(place, **texts)
    events = _events(place / RECORD) if series else []
    measured, total = 0, sum(isinstance(event, Resource) for event in events)
    until = data["ended"] or time.time()
    for event in events:
        measured += isinstance(event, Resource)  # their times are not on record, but they came evenly
        run.take(event, at=data["started"] + (until - data["started"]) * measured / max(total, 1))
    run.state, run.started, run.ended, run.elsewhere = data["state"], data["started"], data["ended"], data["elsewhere"]
    run.shown = data.get("shown") or run.started
    run.reused, run.error = bool(data.get("reused")), data.get("error")
    if run.elsewhere is None or not events:  # what a live one says by now is newer than its summary
        run.stage, run.message, run.progress = str(data.get("stage") or ""), str(data.get("message") or ""), None
    run.news()
    return run


def _events(file: Path) -> list[Event]:
    """The events on record. A run that never began has none; the last line of a killed one may be incomplete."""
    found = []
    try:
        with open(file, encoding="utf-8", errors="replace") as stream:
            for line in stream:
                with contextlib.suppress(ValueError):
                    found.append(read(line))
    except OSError:
        return []
    return found
