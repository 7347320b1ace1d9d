"""The nodes that run the engine: caching, the trainers, the generators, batches of prompts, looking at a dataset.

A node gathers option values from its widgets and from the nodes before it, makes the job that the command line would
make, and runs it. A result that is there already is found again, and no engine is started.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..engine.contract import saved_names
from ..engine.contract.errors import OptionError
from ..engine.contract.job import Job
from ..engine.contract.options import Saving
from ..engine.contract.schema import Option
from . import host, jobs, manifest, paths, places, settings, show, sockets, widgets
from .dataset import Dataset, dataset_of
from .jobs import runs
from .publish import Publisher
from .runs import Run
from .sockets import COMBO, DATASET, LORAS, RUN, STRING, VIDEO, models_type
from .spec import Call, Input, Node, Outcome, Result, Socket, Widget
from .weights import Models, models_of

CONTAINERS = {"prores_ks": ".mov", "ffv1": ".mkv", "libvpx-vp9": ".webm"}
RUN_RESULT = Result(id="run", type=RUN, help="For a monitor: numbers, previews and log of this run.")


def fitting(verb: str, family: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the models' values that the command has, without options that it takes only for compatibility."""
    known = places.of_command(verb, family)
    return {name: value for name, value in values.items() if name in known and places.usable(known[name])}


def finished(call: Call, values: Iterable[Any], this: Run) -> Outcome:
    """The results, and for the page the run that they are from."""
    return Outcome(values=(*values, this), ui={"musubi_run": [this.id]})


def found_again(call: Call, key: str, verb: str, family: str) -> tuple[Run, dict[str, Any]] | None:
    """The run that made a result which is still there, and the note on it; None if it is not there."""
    noted = manifest.find(key)
    if noted is None:
        return None
    this = runs.again(
        paths.jobs(), noted["run"], title=call.node.title, verb=verb, family=family, node=call.node_id,
        prompt=call.prompt_id, workflow=call.workflow_id,
    )  # fmt: skip
    show.tell(this)
    return this, noted


def coming(call: Call) -> Outcome:
    """Stand-ins for a node's results, for a check."""
    known = {LORAS: sockets.COMING_LORAS, DATASET: call.inputs.get("dataset")}
    return Outcome(values=tuple(known.get(result.type, sockets.COMING) for result in call.node.results))


def key_of_file(job: Job, file: Path) -> str:
    """The key of a result that is one file of this name."""
    return manifest.key_of(job, beside={"file": str(file)})


def note_file(key: str, this: Run, file: Path) -> None:
    """Remember a result that is one file."""
    manifest.note(key, run=this.id, files=[str(file)])


# ----------------------------------------------------------------------------------------------------------- caching


def _any_models() -> tuple[str, ...]:
    return tuple(models_type(places.node_name(family)) for family in places.family_names())


def _cache_node(verb: str, name: str, title: str, help_text: str) -> Node:
    options = places.any_family_options(verb)
    made = widgets.of_options(options.values())

    def job_of(call: Call) -> Job:
        dataset, models = dataset_of(call.inputs["dataset"]), models_of(call.inputs["models"])
        own = widgets.to_options(made, call.inputs, changed_only=True)
        _refuse_foreign(own, places.of_command(verb, models.family), models.family)
        values = {**fitting(verb, models.family, models.options), **own, "dataset_config": dataset.path}
        return jobs.job_of(verb, models.family, values)

    def check(call: Call) -> Outcome:
        job_of(call)
        dataset_of(call.inputs["dataset"]).look_for_sources()
        return coming(call)

    def execute(call: Call) -> Outcome:
        job, dataset, models = job_of(call), call.inputs["dataset"], call.inputs["models"]
        key = manifest.key_of(job, beside={"dataset": dataset.stamp()})
        recache = call.inputs.get("recache")
        again = None if recache else found_again(call, key, verb, models.family)
        if again is not None:
            return finished(call, (dataset,), again[0])
        this = jobs.run_job(call, job)
        if this.state == "done":
            manifest.note(key, run=this.id, files=(), folders=_cache_folders(verb, dataset, models))
        return finished(call, (dataset,), this)

    return Node(
        name=name, title=title, group="Cache", help=help_text, execute=execute, is_output=True, check=check,
        told_at="models",
        inputs=(
            Socket(id="dataset", types=(DATASET,), help="From a Dataset Config node."),
            Socket(id="models", types=_any_models(), help="From a Model Paths node of any family."),
            *made,
        ),
        results=(Result(id="dataset", type=DATASET, help="The same dataset, cached."), RUN_RESULT),
    )  # fmt: skip


def _refuse_foreign(own: Mapping[str, Any], known: Mapping[str, Option], family: str) -> None:
    for name in own:
        if name not in known:
            raise OptionError(
                f"{name} is not an option of {places.title(family)}.",
                hint=f"Leave {name} at its default.",
                names=(name,),
            )


def _cache_folders(verb: str, dataset: Dataset, models: Models) -> list[tuple[str, tuple[str, ...]]]:
    short = places.own(models.family).ARCHITECTURE
    pattern = f"*_{short}.safetensors" if verb == "cache-latents" else f"*_{short}_te.safetensors"
    return [(folder, (pattern,)) for folder in dataset.caches]


# ---------------------------------------------------------------------------------------------------------- training


def _trainer(family: str) -> Node:
    name, title = places.node_name(family), places.title(family)
    options = places.task_options(places.TRAIN, family)
    kept = [option for option in places.of_command(places.TRAIN, family).values() if option.name in places.ON_TRAINER]
    made = widgets.of_options([*kept, *(option for option in options if option.name not in places.ON_TRAINER)])
    inputs: tuple[Input, ...] = (
        Socket(id="dataset", types=(DATASET,), help="A dataset whose latents and texts are cached."),
        Socket(id="models", types=(models_type(name),), help=f"From {title} Model Paths."),
        *settings.settings_sockets(),
        *made,
    )

    def execute(call: Call) -> Outcome:
        return _train(call, family, made)

    def check(call: Call) -> Outcome:
        _training_job(call, family, made)
        return coming(call)

    return Node(
        name=f"{name}LoRATrainer", title=f"{title} LoRA Trainer", group="Train", kind="LoRATrainer", family=title,
        is_output=True,
        help=f"Trains a LoRA for {title} and puts it into ComfyUI's loras folder, under musubi. Cancel stops within "
        "seconds; Stop and save on the node finishes the step at hand and keeps everything.",
        inputs=inputs, execute=execute, fingerprint=_trained_fingerprint, check=check, told_at="models",
        results=(
            Result(id="lora_name", type=COMBO, label="LoRA name", help="The LoRA as ComfyUI's LoRA loaders list it."),
            Result(id="loras", type=LORAS, label="LoRAs", help="A stack with this LoRA, for the generator."),
            Result(id="path", type=STRING, help="The LoRA's file."),
            RUN_RESULT,
            *(
                Result(id=f"loras{ending}", type=LORAS, help="A stack with the LoRA of the other expert, if any.")
                for ending in places.expert_endings(family)
            ),
        ),
        aliases=("train", "fine-tune", title),
    )  # fmt: skip


def _trained_fingerprint(inputs: Mapping[str, Any]) -> str:
    """A text that changes with the files of this training: a deleted LoRA is made again, a stopped training goes on."""
    return manifest.listing_stamp(paths.training(str(inputs.get("output_name"))), ("*.safetensors",))


def _training_job(call: Call, family: str, made: list[Widget]) -> Job:
    dataset, models = dataset_of(call.inputs["dataset"]), models_of(call.inputs["models"])
    own = widgets.to_options(made, call.inputs)
    values = {
        **fitting(places.TRAIN, family, models.options), **settings.merged(call.inputs),
        **own, "dataset_config": dataset.path, "output_dir": str(paths.training(own["output_name"])),
    }  # fmt: skip
    return jobs.job_of(places.TRAIN, family, values)


def _train(call: Call, family: str, made: list[Widget]) -> Outcome:
    job, name = _training_job(call, family, made), call.inputs["output_name"].strip()
    folder = paths.training(name)
    beside = {
        "dataset": call.inputs["dataset"].stamp(), "training": name, "settings": settings.depends(call.inputs),
    }  # fmt: skip
    key = manifest.key_of(job, beside=beside, without=("resume",))  # however often it was interrupted
    saving = job[Saving]
    deletes = bool(saving.save_last_n_steps or saving.save_last_n_epochs)
    publisher = Publisher(paths.result_folder("lora"), folder, deletes=deletes)
    again = found_again(call, key, places.TRAIN, family)
    if again is not None:
        return _trained(call, family, publisher, Path(again[1]["lora"]), again[0])
    try:
        this = jobs.run_job(call, job, on_artifact=publisher.take)
    finally:
        publisher.tidy()
    final = _last_lora(this, folder / saved_names.lora(name))
    if this.state == "done":
        manifest.note(key, run=this.id, files=[str(final)], lora=str(final))
    return _trained(call, family, publisher, final, this)


def _last_lora(this: Run, wanted: Path) -> Path:
    """The LoRA that a training ended with, which if stopped may only have saved a step. JobFailed: there is none."""
    saved = [Path(entry["path"]) for entry in this.artifacts if entry["kind"] == "LoRA"]
    its_own = saved_names.loras_of(wanted.stem, [""], best=False)  # not those of a further expert, nor averages
    saved = [file for file in saved if file.is_file() and its_own.fullmatch(file.name)]
    if not saved:
        raise jobs.JobFailed(
            "The training was stopped before a LoRA was saved.", "Queue the workflow again: it goes on."
        )
    return wanted if wanted in saved else saved[-1]


def _trained(call: Call, family: str, publisher: Publisher, final: Path, this: Run) -> Outcome:
    """The trained LoRA, and those of further experts, whose files have their endings after the training's name."""
    file, name = publisher.published(final), call.inputs["output_name"].strip()
    further = [final.with_name(final.name.replace(name, name + ending, 1)) for ending in places.expert_endings(family)]
    stacks = [_stack_of(publisher.published(other)) if other.is_file() else sockets.LoraStack() for other in further]
    outcome = finished(call, (_listed_name(file), _stack_of(file), str(file)), this)
    return Outcome(values=(*outcome.values, *stacks), ui=outcome.ui)


def _listed_name(file: Path) -> str:
    """The name in ComfyUI's lists: with our folder before it."""
    return str(file.relative_to(file.parents[1]))


def _stack_of(file: Path) -> sockets.LoraStack:
    return sockets.LoraStack((sockets.Lora(_listed_name(file), str(file)),))


# --------------------------------------------------------------------------------------------------------- generation


def _generation_options(family: str) -> list[Option]:
    return places.task_options(places.GENERATE, family)


def _generation_inputs(family: str, made: list[Widget]) -> tuple[Input, ...]:
    name, title = places.node_name(family), places.title(family)
    return (
        Socket(id="models", types=(models_type(name),), help=f"From {title} Model Paths."),
        *sockets.of_options(_generation_options(family)),
        *made,
        _prefix_widget(f"musubi/{family}"),
    )


def _prefix_widget(default: str) -> Widget:
    return Widget(
        id="filename_prefix", kind="text", default=default, label="filename prefix",
        help="Where in the output folder the video goes, and how its name begins.",
    )  # fmt: skip


def _generator(family: str) -> Node:
    name, title = places.node_name(family), places.title(family)
    made = widgets.of_options(option for option in _generation_options(family) if option.file_kind != "prompts")

    def execute(call: Call) -> Outcome:
        this, files = _generate(call, family, widgets.to_options(made, call.inputs))
        return finished(call, (_as_video(files[0], call), str(files[0])), this)

    def check(call: Call) -> Outcome:
        _generation_job(call, family, widgets.to_options(made, call.inputs))
        return coming(call)

    return Node(
        name=f"{name}Generator", title=f"{title} Generator", group="Generate", kind="Generator", family=title,
        is_output=True,
        help=f"Generates a video with {title}, with or without LoRAs.", execute=execute, check=check, told_at="models",
        inputs=_generation_inputs(family, made),
        results=(
            Result(id="video", type=VIDEO, help="The video; Get Video Components gives its frames."),
            Result(id="path", type=STRING, help="The file in the output folder."),
            RUN_RESULT,
        ),
        aliases=("sampler", "text to video", "image to video", title),
    )  # fmt: skip


def _generation_job(call: Call, family: str, own: dict[str, Any]) -> Job:
    models = models_of(call.inputs["models"])
    target = _target(call)
    suffix = CONTAINERS.get(str(own.get("codec")), ".mp4")
    values = {
        **fitting(places.GENERATE, family, models.options), **own,
        **sockets.to_options(_generation_options(family), call.inputs),
        "save_path": str(target.with_name(target.name + suffix)),
    }  # fmt: skip
    return jobs.job_of(places.GENERATE, family, values)


def _target(call: Call) -> Path:
    return paths.prefix(call.inputs["filename_prefix"], "filename_prefix")


def _generate(call: Call, family: str, own: dict[str, Any]) -> tuple[Run, list[Path]]:
    job = _generation_job(call, family, own)
    key = manifest.key_of(job, beside={"where": str(_target(call))})
    again = found_again(call, key, places.GENERATE, family)
    if again is not None:
        return again[0], [Path(path) for path in again[1]["made"]]
    this = jobs.run_job(call, job)
    made = [Path(entry["path"]) for entry in this.artifacts if entry["kind"] in ("video", "image")]
    if not made:
        raise jobs.JobFailed("The run was stopped before a video was finished.", "Queue the workflow again.")
    if this.state == "done":
        manifest.note(key, run=this.id, files=map(str, made), made=[str(path) for path in made])
    return this, made


def _as_video(file: Path, call: Call) -> Any:
    if file.suffix.lower() in paths.IMAGE_SUFFIXES:
        return host.video_of_images(host.images_of([file]), float(call.inputs.get("fps") or 1))
    return host.video_of(file)


def _batch_processor() -> Node:
    """One node for all families: it has the options that all of them have; a prompt line can give more."""
    options = places.common_options(places.GENERATE)
    made = widgets.of_options(option for option in options if option.name != "prompt")
    made.sort(key=lambda widget: (widget.option != "from_file", widget.advanced))

    def check(call: Call) -> Outcome:
        own = widgets.to_options(made, call.inputs, changed_only=True)
        _generation_job(call, models_of(call.inputs["models"]).family, own)
        return coming(call)

    def execute(call: Call) -> Outcome:
        models = models_of(call.inputs["models"])
        own = widgets.to_options(made, call.inputs, changed_only=True)
        this, files = _generate(call, models.family, own)
        return finished(call, ([_as_video(file, call) for file in files], "\n".join(map(str, files))), this)

    return Node(
        name="BatchProcessor", title="Batch Processor", group="Generate", is_output=True, execute=execute, check=check,
        told_at="models",
        help="Generates one video for each line of a list of prompts; the models are loaded once. A line may set its "
        "own size, length, seed and steps; images that it names must be in the input folder.",
        inputs=(
            Socket(id="models", types=_any_models(), help="From a Model Paths node of any family."),
            *sockets.of_options(options),
            *made,
            _prefix_widget("musubi/batch"),
        ),
        results=(
            Result(id="videos", type=VIDEO, many=True, help="The videos, in the order of the lines."),
            Result(id="paths", type=STRING, help="Their files, one per line."),
            RUN_RESULT,
        ),
        aliases=("prompt list", "from file", "queue"),
    )  # fmt: skip


def nodes() -> list[Node]:
    found = [
        _cache_node(
            "cache-latents", "VAELatentCache", "VAE Latent Cache",
            "Encodes the clips of a dataset with the VAE, once. What is up to date is skipped.",
        ),
        _cache_node(
            "cache-text", "TextEncoderCache", "Text Encoder Cache",
            "Encodes the captions of a dataset with the text encoder, once. What is up to date is skipped.",
        ),
    ]  # fmt: skip
    found += [_trainer(family) for family in places.family_names() if places.has(places.TRAIN, family)]
    found += [_generator(family) for family in places.family_names() if places.has(places.GENERATE, family)]
    return [*found, _batch_processor()]
