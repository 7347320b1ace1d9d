"""What a toy file is, from names and shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...contract.errors import WeightsError
from ...parts import file_kinds
from .keys import dit_name

Shapes = Mapping[str, tuple[int, ...]]
_KINDS = (
    file_kinds.Kind("dit", "a toy DiT", "Give it as --dit.", file_kinds.has("patch_in.weight", "blocks.0.mix.weight")),
    file_kinds.Kind("vae", "a toy VAE", "Give it as --vae.", file_kinds.has("latent_scale")),
    file_kinds.Kind("text-encoder", "a toy byte table", "Give it as --byte_table.", file_kinds.has("bytes.weight")),
    file_kinds.Kind("lora", "a LoRA", "Give it as --lora_weight.", file_kinds.is_lora),
)


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """Every size of a toy DiT."""

    channels: int
    dim: int
    text_dim: int
    num_layers: int


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The one member of the family."""

    family: str
    name: str
    config: ToyConfig


def detect(shapes: Shapes, metadata: Mapping[str, str], *, source: str = "This file") -> Variant:
    """The sizes of a toy DiT. WeightsError for another kind of file."""
    check_role(shapes, wanted="dit", flag="--dit", source=source)
    named = {dit_name(name): shape for name, shape in shapes.items()}
    dim, channels = named["patch_in.weight"]
    config = ToyConfig(
        channels=channels,
        dim=dim,
        text_dim=named["text_in.weight"][1],
        num_layers=sum(1 for name in named if name.endswith(".mix.weight")),
    )
    return Variant(family="toy", name="toy-blocks", config=config)


def fullest() -> ToyConfig:
    """There is one size."""
    return ToyConfig(channels=768, dim=64, text_dim=16, num_layers=2)


def role_of(shapes: Shapes) -> str | None:
    """ "dit", "vae", "text-encoder", "lora", or None."""
    kind = file_kinds.kind_of(_KINDS, shapes)
    return None if kind is None else kind.role


def check_role(shapes: Shapes, *, wanted: str, flag: str, source: str) -> None:
    """WeightsError that says what the file looks like, unless it has the role that is wanted."""
    file_kinds.check_role(_KINDS, shapes, wanted=wanted, flag=flag, source=source)


def check_task(variant: Variant, task: str) -> None:
    """The toy has no tasks, so every named one is wrong."""
    raise WeightsError(f"A toy DiT knows no tasks, but the job says {task}.", "Leave out the task.")
