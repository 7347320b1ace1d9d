"""Nodes around LoRA files: conversion, merging, averaging. What they write appears in ComfyUI's own folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..engine.contract import commands
from ..engine.contract.errors import OptionError
from ..engine.contract.saved_names import is_numbered, unnumbered
from ..engine.contract.schema import Option
from . import jobs, paths, places, sockets, tasks, widgets
from .sockets import COMBO, LORAS, STRING
from .spec import Call, Node, Outcome, Result, Socket, Widget, named_after

"""What a training adds to the name of a LoRA that it saves along the way; a test compares it with the engine's."""
LORA_RESULTS = (
    Result(id="lora_name", type=COMBO, label="LoRA name", help="The LoRA as ComfyUI's LoRA loaders list it."),
    Result(id="path", type=STRING, help="The file."),
    tasks.RUN_RESULT,
)


def _name_widget() -> Widget:
    return Widget(
        id="name", kind="text", default="", help="File name without extension. Empty: made from the input's name."
    )


def _options(verb: str, *, without: tuple[str, ...] = ()) -> list[Option]:
    return [option for name, option in places.of_command(verb, None).items() if name not in (*without, *places.RUN)]


def _target(call: Call, kind: str, source: str, ending: str) -> Path:
    given = call.inputs["name"].strip()
    return paths.result_folder(kind) / (paths.safe_name(given or named_after(source, ending), "name") + ".safetensors")


Asked = Callable[[Call], tuple[dict[str, Any], Path]]
"""The options for a node's inputs, and the file that is to be written."""


def _functions(verb: str, asked: Asked) -> tuple[Callable[[Call], Outcome], Callable[[Call], Outcome]]:
    """`execute` and `check` of a tool's node."""

    def check(call: Call) -> Outcome:
        jobs.job_of(verb, None, asked(call)[0])
        return tasks.coming(call)

    return lambda call: _run(call, verb, *asked(call)), check


def _run(call: Call, verb: str, values: dict[str, Any], file: Path) -> Outcome:
    """Run the tool unless its result is there; file name and path are the node's results."""
    job = jobs.job_of(verb, None, values)
    key = tasks.key_of_file(job, file)
    again = tasks.found_again(call, key, verb, "")
    if again is None:
        file.parent.mkdir(parents=True, exist_ok=True)
        this = jobs.run_job(call, job)
        if this.state == "done":
            tasks.note_file(key, this, file)
    else:
        this = again[0]
    return tasks.finished(call, (str(file.relative_to(file.parents[1])), str(file)), this)


def _converter() -> Node:
    made = widgets.of_options(_options("lora convert"))
    made.sort(key=lambda widget: widget.advanced)

    def asked(call: Call) -> tuple[dict[str, Any], Path]:
        values = widgets.to_options(made, call.inputs)
        if "input" not in values:
            raise OptionError("No LoRA is chosen.", hint="Choose one in input.", names=("input",))
        file = _target(call, "lora", call.inputs["input"], str(values["target"]))
        return {**values, "output": str(file)}, file

    execute, check = _functions("lora convert", asked)
    return Node(
        name="LoRAFormatConverter", title="LoRA Format Converter", group="LoRA", is_output=True, execute=execute,
        check=check, told_at="name",
        help="Writes a LoRA with the names that another program expects; its effect on the model stays the same.",
        inputs=(*made, _name_widget()), results=LORA_RESULTS, aliases=("diffusers", "kohya", "peft", "convert lora"),
    )  # fmt: skip


def _merger() -> Node:
    options = _options("lora merge", without=("lora_weight", "lora_multiplier"))
    made = widgets.of_options(options)
    write = Widget(
        id="write", kind="choice", default="model", choices=("model", "LoRA"),
        help="model: a model file with the LoRAs merged in, for ComfyUI's diffusion_models folder. LoRA: one LoRA with "
        "the effect of all of them together.",
    )  # fmt: skip

    def asked(call: Call) -> tuple[dict[str, Any], Path]:
        stack = sockets.to_options(_options("lora merge"), call.inputs)
        if not stack:
            raise OptionError("The LoRA stack is empty.", hint="Choose LoRAs in the stack node.", names=("loras",))
        values = {**widgets.to_options(made, call.inputs), **stack}
        model = call.inputs["write"] == "model"
        first = values.get("dit", "merged") if model else stack["lora_weight"][0]
        file = _target(call, "dit" if model else "lora", str(first), "merged")
        target = {"save_merged_model" if model else "save_merged_lora": str(file)}
        return {**values, **target}, file

    execute, check = _functions("lora merge", asked)
    return Node(
        name="LoRAMerger", title="LoRA Merger", group="LoRA", is_output=True, execute=execute, check=check,
        told_at="loras",
        help="Merges LoRAs into a model file, or several LoRAs into one.",
        inputs=(Socket(id="loras", types=(LORAS,), help="From a LoRA Stack node."), write, *made, _name_widget()),
        results=(
            Result(
                id="name", type=COMBO, help="The file as ComfyUI lists it, for a model loader or a LoRA loader."
            ),
            *LORA_RESULTS[1:],
        ),
        aliases=("bake lora", "combine lora"),
    )  # fmt: skip


def _averager() -> Node:
    made = widgets.of_options(_options("lora ema", without=("path",)))
    lora = Widget(
        id="lora", kind="choice", default=widgets.NONE, unset=widgets.NONE, listing=lambda: paths.model_files("lora"),
        help="Any LoRA of a training: all that it saved along the way (save_every_n_steps or _epochs) are averaged. "
        "none: those of the stack.",
    )  # fmt: skip
    stack = Socket(id="loras", types=(LORAS,), optional=True, help="Or the LoRAs to average, in this order.")

    def asked(call: Call) -> tuple[dict[str, Any], Path]:
        given = call.inputs.get("loras")
        if isinstance(given, sockets.LoraStack) and given.loras:
            files = [entry.path for entry in given.loras]
        elif call.inputs["lora"] != widgets.NONE:
            files = [str(file) for file in saved_by(Path(paths.model_file("lora", call.inputs["lora"])))]
        else:
            raise OptionError("No LoRA is chosen.", hint="Choose one in lora, or connect a stack.", names=("lora",))
        file = _target(call, "lora", unnumbered(Path(files[0]).stem), "ema")
        values = {**widgets.to_options(made, call.inputs), "path": files, "output_file": str(file)}
        return values, file

    execute, check = _functions("lora ema", asked)
    return Node(
        name="LoRAPostHocEMA", title="LoRA Post-Hoc EMA", group="LoRA", is_output=True, execute=execute, check=check,
        told_at="name",
        help="Averages the LoRAs that one training saved along the way: steadier than the last one alone.",
        inputs=(stack, lora, *made, _name_widget()), results=LORA_RESULTS, aliases=("average", "ema"),
    )  # fmt: skip


def saved_by(file: Path) -> list[Path]:
    """The numbered LoRAs of the training that saved this one, in order of their numbers. OptionError under two."""
    stem = unnumbered(file.stem)
    found = sorted(
        path for path in file.parent.glob("*" + file.suffix)
        if is_numbered(path.stem) and unnumbered(path.stem) == stem
    )  # fmt: skip
    if len(found) < 2:
        raise OptionError(
            f"There are fewer than two saved LoRAs of {stem} to average.",
            hint="Train with save_every_n_steps or save_every_n_epochs, or connect a stack.",
            names=("lora",),
        )
    return found


_TOOLS: dict[str, Callable[[], Node]] = {
    "lora convert": _converter, "lora merge": _merger, "lora ema": _averager,
}  # fmt: skip


def nodes() -> list[Node]:
    return [make() for verb, make in _TOOLS.items() if commands.find(verb).available]
