"""Nodes that pick model files: Model Paths and LoRA Stack, one of each for every family.

Choices are the names in ComfyUI's own model folders, so nothing is typed and nothing outside of them can be reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..engine.contract.errors import OptionError
from . import paths, places, widgets
from .sockets import LORAS, Lora, LoraStack, models_type
from .spec import NONE, Call, Node, Outcome, Result, Socket, Widget

SLOTS = 4


@dataclass(frozen=True)
class Models:
    """A family's model files, and its own options that several of its commands have, by name."""

    family: str
    options: Mapping[str, Any]


def models_of(value: Any) -> Models:
    """The value of a models input. OptionError: it is not from a Model Paths node."""
    if not isinstance(value, Models):
        raise OptionError("The models input needs a Model Paths node.", hint="Connect one of the family.")
    return value


def _model_paths(family: str) -> Node:
    name, title = places.node_name(family), places.title(family)
    made = widgets.of_options(places.model_options(family))

    def execute(call: Call) -> Outcome:
        return Outcome(values=(Models(family, widgets.to_options(made, call.inputs)),))

    return Node(
        name=f"{name}ModelPaths", title=f"{title} Model Paths", group="Models", kind="ModelPaths", family=title,
        help=f"The model files of {title}, from ComfyUI's model folders, and which model it is. What a step does not "
        "need may stay none: caching needs no DiT, training no text encoder.",
        inputs=tuple(made), execute=execute, check=execute,
        results=(Result(id="models", type=models_type(name), help=f"The models of {title}."),),
        aliases=("model loader", "checkpoint", title),
    )  # fmt: skip


def _slot(number: int) -> list[Widget]:
    return [
        Widget(
            id=f"lora_{number}", kind="choice", default=NONE, unset=NONE, label=f"LoRA {number}",
            listing=partial(paths.model_files, "lora"), resolve=partial(paths.model_file, "lora"),
            help="A LoRA from ComfyUI's loras folder; none leaves the place empty.",
        ),
        Widget(
            id=f"strength_{number}", kind="float", default=1.0, low=-10, high=10, step=0.05,
            label=f"strength {number}", help="How strongly it is applied; 1 is as trained.",
        ),
    ]  # fmt: skip


def _patterns(number: int) -> list[Widget]:
    texts = {
        "include": "Regular expression: merge only modules whose name it matches, such as cross_attn. Empty: all.",
        "exclude": "Regular expression: leave out modules whose name it matches, even if they are included.",
    }
    return [
        Widget(id=f"{what}_{number}", kind="text", default="", label=f"{what} {number}", help=help, advanced=True)
        for what, help in texts.items()
    ]


def _lora_stack(family: str) -> Node:
    name, title = places.node_name(family), places.title(family)
    own = widgets.of_options(places.stack_options(family))
    slots = [widget for number in range(1, SLOTS + 1) for widget in _slot(number)]
    patterns = [widget for number in range(1, SLOTS + 1) for widget in _patterns(number)]
    before = Socket(
        id="previous", types=(LORAS,), optional=True, label="previous", help="LoRAs that come before these."
    )

    def execute(call: Call) -> Outcome:
        earlier = call.inputs.get("previous") or LoraStack()
        chosen = [_lora(call.inputs, number) for number in range(1, SLOTS + 1)]
        options = {**(earlier.options or {}), **widgets.to_options(own, call.inputs, changed_only=True)}
        return Outcome(values=(LoraStack((*earlier.loras, *filter(None, chosen)), options),))

    return Node(
        name=f"{name}LoRAStack", title=f"{title} LoRA Stack", group="Models", kind="LoRAStack", family=title,
        help="LoRAs that are merged into the model, in this order. Stacks can be chained.",
        inputs=(before, *slots, *own, *patterns), execute=execute, check=execute,
        results=(Result(id="loras", type=LORAS, help="For a generator, or a trainer's base LoRAs."),),
        aliases=("lora loader", "power lora"),
    )  # fmt: skip


def _lora(inputs: Mapping[str, Any], number: int) -> Lora | None:
    name = inputs[f"lora_{number}"]
    if name == NONE:
        return None
    return Lora(
        name, paths.model_file("lora", name), inputs[f"strength_{number}"], inputs[f"include_{number}"].strip(),
        inputs[f"exclude_{number}"].strip(),
    )  # fmt: skip


def nodes() -> list[Node]:
    found = []
    for family in places.family_names():
        found += [_model_paths(family), _lora_stack(family)]
    return found
