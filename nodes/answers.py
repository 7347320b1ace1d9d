"""The server's answers to the page: runs, files of a run, environment, settings, contact sheets. Knows no HTTP library.

Each function takes an `Asked` and returns an `Answer`; they may block and are called on a thread. Paths are checked
like those of a workflow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..engine.contract.errors import EngineError, OptionError
from . import demo, environment, jobs, last_shown, paths, preferences, sheet, words, workers
from .runs import OVER, Run

COMMANDS = ("stop", "save", "sample", "cancel")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request: the run that its path names, its query, its JSON body."""

    run: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A status with JSON, or a file."""

    status: int = 200
    data: Any = None
    file: Path | None = None


class Refusal(Exception):
    """An answer with a status other than 200."""

    def __init__(self, status: int, message: str, hint: str = ""):
        super().__init__(message)
        self.status, self.message, self.hint = status, message, hint


def answered(function: Callable[[Asked], Answer], asked: Asked) -> Answer:
    """The function's answer; a Refusal or an EngineError becomes an answer too."""
    try:
        return function(asked)
    except Refusal as refusal:
        return error(refusal.status, refusal.message, refusal.hint)
    except EngineError as problem:
        status = 400 if isinstance(problem, OptionError) else 500
        return error(status, words.of_node(problem.message), words.of_node(problem.hint))


def error(status: int, message: str, hint: str = "") -> Answer:
    return Answer(status=status, data={"error": {"message": message, "hint": hint}})


# -------------------------------------------------------------------------------------------------------------- runs


def _run(asked: Asked, *, series: bool = True) -> Run:
    found = jobs.runs.get(paths.jobs(), asked.run, series=series)
    if found is None:
        raise Refusal(404, "There is no such run.", "It may have been taken off the list.")
    return found


def _own_run(asked: Asked) -> Run:
    """A run that this ComfyUI may end or take off the list: its own, or any that is over. Refusal otherwise."""
    found = _run(asked)
    if found.elsewhere == {}:
        raise Refusal(409, "ComfyUI has ended, but the run's engine still saves.", "Wait until it has ended too.")
    if found.elsewhere is not None:
        process, machine = found.elsewhere["process"], found.elsewhere["machine"]
        raise Refusal(
            409,
            f"The run is under way in another ComfyUI, process {process} on {machine}.",
            "Stop it or cancel it there.",
        )
    return found


def runs(asked: Asked) -> Answer:
    return Answer(data={"runs": jobs.runs.summaries(paths.jobs())})


def run(asked: Asked) -> Answer:
    return Answer(data=_run(asked).whole())


def log(asked: Asked) -> Answer:
    after = asked.query.get("after", "")
    text, offset = _run(asked, series=False).log(int(after) if after.isascii() and after.isdecimal() else None)
    return Answer(data={"text": text, "offset": offset})


def file(asked: Asked) -> Answer:
    path = _run(asked).file(asked.query.get("name", ""))
    if path is None:
        raise Refusal(404, "The run made no such file, or it is gone.")
    return Answer(file=paths.inside(path))


def workflow(asked: Asked) -> Answer:
    path = _run(asked).folder / "workflow.json"
    if not path.is_file():
        raise Refusal(404, "No workflow was kept with this run.", "It was queued without one, by a script.")
    return Answer(file=path)


def command(asked: Asked) -> Answer:
    found, word = _own_run(asked), asked.body.get("command")
    if word not in COMMANDS:
        raise Refusal(400, f"There is no command {word!r}.", f"There are: {', '.join(COMMANDS)}.")
    orders = jobs.runs.orders(found.id)
    if orders is None:
        raise Refusal(409, "The run is not under way.", "Only a running one takes commands.")
    if word == "cancel":
        orders.cancel()
        found.change("stopping", message="Cancelled.")
    else:
        orders.send(word)
    if word == "stop":
        found.change("stopping", message="Stopping: finishing the step at hand and saving.")
    return Answer(data=found.summary())


def remove(asked: Asked) -> Answer:
    found = _own_run(asked)
    if found.state not in OVER:
        raise Refusal(409, "The run is under way.", "Cancel it first.")
    jobs.runs.remove(paths.jobs(), found)
    return Answer(data={"removed": found.id})


def shown(asked: Asked) -> Answer:
    return Answer(data={"shown": last_shown.of_workflow(asked.query.get("workflow", ""))})


# ------------------------------------------------------------------------------------- environment, settings, datasets


def engine(asked: Asked) -> Answer:
    return Answer(data=environment.maker.state())


def engine_action(asked: Asked) -> Answer:
    action = asked.body.get("action")
    if action == "cancel":
        environment.maker.cancel()
    elif action in environment.ACTIONS:
        environment.maker.begin(action)
    else:
        raise Refusal(
            400, f"There is no action {action!r}.", f"There are: {', '.join([*environment.ACTIONS, 'cancel'])}."
        )
    return engine(asked)


def make_demo(asked: Asked) -> Answer:
    return Answer(data=demo.make().summary())


def settings(asked: Asked) -> Answer:
    return Answer(data=preferences.load().as_json())


def change_settings(asked: Asked) -> Answer:
    changed = preferences.save(asked.body)
    workers.bench.clear()  # it was started with the old settings
    return Answer(data=changed.as_json())


def dataset_preview(asked: Asked) -> Answer:
    return Answer(file=sheet.of_path(asked.query.get("path", ""), asked.query.get("family", "")))


ROUTES: tuple[tuple[str, str, Callable[[Asked], Answer]], ...] = (
    ("GET", "/musubi/runs", runs),
    ("GET", "/musubi/runs/{id}", run),
    ("GET", "/musubi/runs/{id}/log", log),
    ("GET", "/musubi/runs/{id}/file", file),
    ("GET", "/musubi/runs/{id}/workflow", workflow),
    ("POST", "/musubi/runs/{id}/command", command),
    ("DELETE", "/musubi/runs/{id}", remove),
    ("GET", "/musubi/shown", shown),
    ("GET", "/musubi/environment", engine),
    ("POST", "/musubi/environment", engine_action),
    ("POST", "/musubi/demo", make_demo),
    ("GET", "/musubi/settings", settings),
    ("POST", "/musubi/settings", change_settings),
    ("GET", "/musubi/datasets/preview", dataset_preview),
)
