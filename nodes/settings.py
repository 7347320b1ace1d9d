"""The settings nodes of a training: one for each group of option sections that all families share.

Such a node passes on the options that a person changed; those at their defaults are left to the family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..engine.contract.errors import OptionError
from . import places, sockets, widgets
from .spec import Call, Input, Node, Outcome, Result, Socket, display

HELP = {
    "LoRATrainingConfig": "How long a LoRA is trained, its rank, which noise levels it sees, how often it is saved.",
    "OptimizerConfig": "How the weights are updated: optimizer, learning rate, and how it changes over the training.",
    "SamplingConfig": "Videos made while training, to watch the LoRA learn.",
    "MemoryOptimizer": "Options that save GPU memory in a training, mostly at the cost of time: fp8, block streaming, "
    "checkpointing, attention.",
}
TITLES = {
    "LoRATrainingConfig": "LoRA Training Config",
    "OptimizerConfig": "Optimizer Config",
    "SamplingConfig": "Sampling Config",
    "MemoryOptimizer": "Memory Optimizer",
}
ALIASES = {
    "LoRATrainingConfig": ("rank", "network_dim", "steps", "epochs"),
    "OptimizerConfig": ("AdamW", "learning rate", "scheduler"),
    "SamplingConfig": ("sample prompts", "preview"),
    "MemoryOptimizer": ("VRAM", "block swap", "fp8", "gradient checkpointing"),
}


@dataclass(frozen=True)
class Settings:
    """Options that a person changed, by name; `node` says on which node. `depends`: stamps of the inputs' files."""

    node: str
    options: dict[str, Any]
    depends: tuple[Any, ...] = ()


def settings_type(name: str) -> str:
    return f"MUSUBI_{name.upper()}"


def socket_name(name: str) -> str:
    """`LoRATrainingConfig` → `training`: the trainer's input for it."""
    return {
        "LoRATrainingConfig": "training",
        "OptimizerConfig": "optimizer",
        "SamplingConfig": "sampling",
        "MemoryOptimizer": "memory",
    }[name]


def settings_sockets() -> list[Socket]:
    """The trainer's inputs for the settings nodes that exist."""
    return [
        Socket(
            id=socket_name(node.name), types=(settings_type(node.name),), optional=True,
            help=f"From the node {node.title}; without it, the defaults.", label=display(socket_name(node.name)),
        )
        for node in nodes()
    ]  # fmt: skip


def merged(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The options of all connected settings nodes."""
    found: dict[str, Any] = {}
    for socket in settings_sockets():
        given = inputs.get(socket.id)
        if given is None:
            continue
        if not isinstance(given, Settings):
            raise OptionError(f"{socket.id} needs a settings node.", hint="Connect the node that it names.")
        found.update(given.options)
    return found


def depends(inputs: Mapping[str, Any]) -> list[Any]:
    """What the connected settings depend on besides their options: the clips of a validation dataset."""
    given = [inputs.get(socket.id) for socket in settings_sockets()]
    return [stamp for settings in given if isinstance(settings, Settings) for stamp in settings.depends]


def _node(name: str) -> Node | None:
    options = places.settings_options(name)
    made = widgets.of_options(options)
    if not made:
        return None  # its options cannot be used yet
    inputs: tuple[Input, ...] = (*sockets.of_options(options), *made)

    def execute(call: Call) -> Outcome:
        found = widgets.to_options(made, call.inputs, changed_only=True)
        found.update(sockets.to_options(options, call.inputs))
        stamps = [given.stamp() for given in call.inputs.values() if hasattr(given, "stamp")]
        return Outcome(values=(Settings(name, found, tuple(stamps)),))

    return Node(
        name=name, title=TITLES[name], group="Train", help=HELP[name], inputs=inputs, execute=execute, check=execute,
        told_at=next((widget.id for widget in made if widget.id == "prompts"), ""),
        results=(Result(id=socket_name(name), type=settings_type(name), help="For a LoRA trainer."),),
        aliases=ALIASES[name],
    )  # fmt: skip


@cache
def nodes() -> list[Node]:
    return [node for name in places.SETTINGS if (node := _node(name)) is not None]
