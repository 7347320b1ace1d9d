"""Contact sheets of datasets: the Dataset Viewer node, and the picture that the page shows beside a dataset.

It only reads and needs no GPU, so it may run during a training.
"""

from __future__ import annotations

import json
from pathlib import Path

from ..engine.contract.commands import find_family
from ..engine.contract.errors import OptionError
from ..engine.contract.events import Done, Failed, Log
from ..engine.contract.files import write_text
from ..engine.contract.options import DatasetTools
from ..engine.contract.schema import options
from . import dataset, environment, host, jobs, paths, places, run, sockets, widgets
from .sockets import IMAGE, STRING
from .spec import Call, Node, Outcome, Result, Socket

VERB = "dataset preview"
PREVIEW_TIMEOUT_S = 120.0


def viewer_node() -> Node:
    made = widgets.of_options(options(DatasetTools))

    def execute(call: Call) -> Outcome:
        shown = dataset.dataset_of(call.inputs["dataset"])
        values = {**widgets.to_options(made, call.inputs), "dataset_config": shown.path}
        key = paths.short_hash(json.dumps([values, shown.stamp()]))
        picture, report = sheet_file(key), sheet_file(key).with_suffix(".txt")
        if not (picture.is_file() and report.is_file()):
            this = jobs.run_job(call, jobs.job_of(VERB, None, {**values, "sheet_path": str(picture)}), uses_gpu=False)
            report.write_text(this.report(), encoding="utf-8")
        return Outcome(values=(host.images_of([picture]), report.read_text(encoding="utf-8")))

    return Node(
        name="DatasetViewer", title="Dataset Viewer", group="Dataset", is_output=True, execute=execute,
        help="A contact sheet of the clips as they will be cached, and a table of sizes and lengths. Look at it before "
        "hours of training.",
        inputs=(Socket(id="dataset", types=(sockets.DATASET,), help="From a Dataset Config node."), *made),
        results=(
            Result(id="sheet", type=IMAGE, help="The contact sheet; Preview Image shows it."),
            Result(id="report", type=STRING, help="Sizes, lengths, batches, and every problem that was found."),
        ),
        aliases=("buckets", "contact sheet", "preview dataset"),
    )  # fmt: skip


def sheet_file(key: str) -> Path:
    return paths.work() / "sheets" / f"{key}.png"


def of_path(name: str, family: str) -> Path:
    """The sheet of a folder or dataset file in an allowed folder. OptionError, or the engine's error."""
    place = paths.named(name)
    case = "file" if place.is_file() else "folder"
    node = dataset.config_node()
    read = widgets.read((node.inputs[0],), {"source": {"source": case, case: name}})
    shown = dataset.written(dataset.described(read["source"]), "preview")
    family = find_family(family) if family else places.family_names()[0]
    key = paths.short_hash(json.dumps([family, shown.stamp()]))
    picture = sheet_file(key)
    if not picture.is_file():
        values = {"dataset_config": shown.path, "family": family, "sheet_path": str(picture)}
        _draw(jobs.job_of(VERB, None, values).to_toml(), paths.work() / "sheets" / f"{key}.toml")
    return picture


def _draw(job: str, file: Path) -> None:
    write_text(file, job, durable=False)
    arguments = [*VERB.split(), "--config_file", str(file), "--events"]
    said: list[str] = []
    child = run.Child(
        environment.engine_program(arguments, folder=paths.work(), log=None),
        lambda event: said.append(event.message) if isinstance(event, Log) and event.level == "error" else None,
    )
    ended = child.wait(PREVIEW_TIMEOUT_S)
    if ended is None:
        child.cancel()
        raise OptionError("Drawing the contact sheet took too long.", hint="Use the Dataset Viewer node.")
    if isinstance(ended.last, Failed):
        raise jobs.JobFailed(ended.last.message, ended.last.hint)
    if not isinstance(ended.last, Done):
        raise jobs.JobFailed("The contact sheet could not be drawn.", "\n".join(ended.tail[-5:]))


def nodes() -> list[Node]:
    return [viewer_node()]
