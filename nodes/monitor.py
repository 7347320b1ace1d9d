"""Panels of a run: its numbers as a picture and as text. The page draws them live; a node's results are what is known
when it runs, for other nodes.
"""

from __future__ import annotations

from pathlib import Path

from . import host, jobs, paths
from .runs import Run
from .sockets import IMAGE, RUN, STRING
from .spec import Call, Node, Outcome, Result, Socket

CURVE = "loss curve"


def _run_of(call: Call) -> Run | None:
    given = call.inputs.get("run")
    return given if isinstance(given, Run) else jobs.runs.newest(paths.jobs())


def _training(call: Call) -> Outcome:
    this = _run_of(call)
    if this is None:
        return Outcome(values=(host.blank_image(), "No run yet."))
    curves = [Path(entry["path"]) for entry in this.artifacts if entry["kind"] == CURVE]
    picture = host.images_of(curves[-1:]) if curves and curves[-1].is_file() else host.blank_image()
    return Outcome(values=(picture, training_text(this)), ui={"musubi_run": [this.id]})


def training_text(this: Run) -> str:
    """A run's state, time, message, last numbers and files, one per line."""
    numbers = [f"{name}: {value:.6g}" for name, value in this.metrics.last().items()]
    files = [f"{entry['kind']}: {entry['path']}" for entry in this.artifacts]
    return "\n".join([f"{this.title}: {this.state}", f"{jobs.elapsed_s(this):.0f} s", this.message, *numbers, *files])


def _resources(call: Call) -> Outcome:
    this = _run_of(call)
    lines = [f"{name}: {value:.0f}" for name, value in host.memory().items()]
    if this is not None:
        lines += [f"{this.title}, most {name}: {value:.0f}" for name, value in this.resources.peak().items()]
    return Outcome(values=("\n".join(lines),), ui={"musubi_run": [this.id]} if this else None)


def nodes() -> list[Node]:
    run = Socket(
        id="run", types=(RUN,), optional=True,
        help="The run to show, from a trainer, cache or generator. Without one: the run that began last.",
    )  # fmt: skip
    return [
        Node(
            name="TrainingMonitor", title="Training Monitor", group="Monitor", execute=_training, is_output=True,
            help="Watches a run: loss curve, learning rate, samples, log. Stop and save, save now, sample now.",
            inputs=(run,),
            results=(
                Result(id="loss_curve", type=IMAGE, label="loss curve", help="The curve of a finished training."),
                Result(id="summary", type=STRING, help="Last numbers and files."),
            ),
            aliases=("loss", "chart", "log"),
        ),
        Node(
            name="ResourceMonitor", title="Resource Monitor", group="Monitor", execute=_resources, is_output=True,
            help="Watches GPU memory, main memory and load while a run is under way.", inputs=(run,),
            results=(Result(id="summary", type=STRING, help="Free memory, and the run's peaks."),),
            aliases=("VRAM", "memory"),
        ),
    ]  # fmt: skip
