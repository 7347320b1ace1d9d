"""Small models, clips and LoRAs with which every shipped workflow runs unchanged, put where ComfyUI finds them.

The engine makes them on this computer, without a download: copies of the pocket models, and LoRAs trained on them. They
are in a folder of their own, registered besides ComfyUI's model folders, so that lists show plain names and deleting
one folder removes all:

    models/musubi_demo/<ComfyUI's folder>/musubi_demo_<family>_<option><suffix>
    input/musubi_demo/<what they show>/         clips with captions

Made only when the person asks for it, while no other run is on the GPU. ComfyUI's own models stay there, since its
queue may be using them; the demo's are small. Knows the demo's folder as `engine demo --prepare_only` leaves it.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from ..engine.contract import toml
from ..engine.contract.errors import EngineError
from ..engine.contract.events import Done, Event, Failed, Progress, Stage
from ..engine.contract.files import whole_file
from . import environment, host, jobs, paths, places, run, show
from .orders import Orders
from .runs import Run

NAME = paths.DEMO
VERB = "demo"
STEPS = ("prepare", "cache-latents", "cache-text", "train")
TICK_S = 0.2


def models() -> Path:
    """The folder of the demo's models."""
    return Path(host.folder_paths().models_dir) / NAME


def register() -> None:
    """Make ComfyUI list the demo's models. A folder that does not exist costs nothing."""
    for kind in paths.MODEL_FOLDERS.values():
        host.folder_paths().add_model_folder_path(kind, str(models() / kind))


def make() -> Run:
    """Start making everything, unless that is under way. Returns the run that shows the progress."""
    with _lock:
        if _under_way and _under_way[0].state not in ("done", "stopped", "failed"):
            return _under_way[0]
        this = jobs.runs.begin(paths.jobs(), title="Demo models", verb=VERB, family="", node="", prompt="")
        _under_way[:] = [this]
    threading.Thread(target=_make, args=(this,), name="musubi demo", daemon=True).start()
    return this


_lock = threading.Lock()
_under_way: list[Run] = []


def _make(this: Run) -> None:
    orders = Orders()
    jobs.runs.control(this, orders)
    try:
        with jobs.on_gpu(this, orders, _stopped):
            this.change("running", message="The engine is starting.")
            names = places.family_names()
            for number, family in enumerate(names):
                _of_family(this, orders, family, number * len(STEPS), len(names) * len(STEPS))
        this.change("done", message=f"In {_shown(models())} and {_shown(clips())}.")
    except EngineError as problem:
        this.change("failed", error={"kind": problem.kind, "message": problem.message, "hint": problem.hint})
    except OSError as problem:
        this.change("failed", error={"kind": "disk", "message": str(problem), "hint": "Check space and permissions."})
    finally:
        jobs.runs.control(this, None)
        show.tell(this)


def _stopped() -> NoReturn:
    raise jobs.JobFailed("The demo was stopped before it was complete.", "Start it again: what has been made is kept.")


def _shown(folder: Path) -> str:
    """A folder with its parent's name: the folders of models and clips have the same one, and the page leaves out long
    paths."""
    return f"{folder.parent.name}/{folder.name}"


def clips() -> Path:
    """The folder of the demo's clips."""
    return Path(host.folder_paths().get_input_directory()) / NAME


def _of_family(this: Run, orders: Orders, family: str, done: int, total: int) -> None:
    """Prepare one family's demo in a working folder, train a LoRA there, and put the files in their places."""
    folder = paths.work() / VERB / family
    dashed = family.replace("_", "-")
    arguments = {
        "prepare": ["demo", "--family", family, "--prepare_only", str(folder)],
        "cache-latents": ["cache-latents", dashed, "--config_file", str(folder / "1_latents.toml")],
        "cache-text": ["cache-text", dashed, "--config_file", str(folder / "2_text.toml")],
        "train": ["train", dashed, "--config_file", str(folder / "3_train.toml")],
    }  # fmt: skip
    for number, step in enumerate(STEPS):
        so_far = Progress(done=done + number, total=total, unit="step")
        record = ["--job_dir", str(this.folder / f"{family}-{step}"), "--events"]
        _engine(this, orders, [*arguments[step], *record], family, so_far)
    for source, target in [*_model_files(folder, family), *_loras(folder, family), *_clip_files(folder)]:
        with whole_file(target, durable=False) as temporary:
            shutil.copyfile(source, temporary)
    shutil.rmtree(folder, ignore_errors=True)


def _engine(this: Run, orders: Orders, arguments: list[str], family: str, so_far: Progress) -> None:
    """One engine command; what it says goes into the run's log. JobFailed in its own words."""

    def take(event: Event) -> None:
        if isinstance(event, Stage):
            this.take(Stage(name=f"{places.title(family)}: {event.name}", message=event.message))
            this.take(so_far)  # a stage begins without progress
        elif not isinstance(event, (Progress, Done, Failed)):
            this.take(event)

    program = environment.engine_program(arguments, folder=paths.work(), log=this.folder / "log.txt")
    child = run.Child(program, take)
    ended = None
    with orders.to(child):
        while ended is None:
            ended = child.wait(TICK_S)
            show.tell(this)
    if isinstance(ended.last, Done) and not ended.last.stopped:
        return
    if isinstance(ended.last, Failed):
        raise jobs.JobFailed(ended.last.message, ended.last.hint)
    _stopped()


def _model_files(folder: Path, family: str) -> Iterator[tuple[Path, Path]]:
    """The model files that the demo's jobs name, under their names in ComfyUI, with the tokenizers beside them."""
    for verb in (*places.CACHING, places.TRAIN, places.GENERATE):
        known = places.of_command(verb, family)
        for name, value in toml.load(next(folder.glob(f"*_{_SHORT[verb]}.toml"))).items():
            kind = known[name].file_kind if name in known else None
            if kind in paths.MODEL_FOLDERS and kind != "lora":
                source = Path(value)
                yield source, models() / paths.MODEL_FOLDERS[kind] / f"{NAME}_{family}_{name}{source.suffix}"
    beside = folder / "models"
    for source in beside.rglob("*"):
        if source.is_file() and source.parent != beside:
            yield source, models() / paths.MODEL_FOLDERS["text_encoder"] / source.relative_to(beside)


_SHORT = {"cache-latents": "latents", "cache-text": "text", "train": "train", "generate": "generate"}


def _loras(folder: Path, family: str) -> Iterator[tuple[Path, Path]]:
    for source in (folder / "output").glob("*.safetensors"):
        name = source.name.replace("demo-lora", f"{NAME}_{family}_lora")
        yield source, models() / paths.MODEL_FOLDERS["lora"] / name


def _clip_files(folder: Path) -> Iterator[tuple[Path, Path]]:
    whole = folder / "clips"
    for source in whole.rglob("*"):
        if source.is_file():
            yield source, clips() / source.relative_to(whole)
