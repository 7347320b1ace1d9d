"""Which modules a LoRA file is about, and whose: the names of a family's model, with or without a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import nn

from ..contract.commands import find_family
from ..contract.errors import OptionError, WeightsError
from ..contract.wording import first_few
from ..families import names, part
from ..lora.files import read_tensors
from ..lora.names import LoraTarget, split
from ..lora.peft import find_weights
from ..parts.weights import open_weights


def lora_target(family: str, model: nn.Module) -> LoraTarget:
    """The modules of a family's model under every name that LoRA files have for them."""
    keys = part(family, "keys")
    return LoraTarget.of(
        model, rename=keys.dit_name, diffusers_parts=keys.diffusers_parts, lora_pieces=keys.lora_pieces
    )


@cache
def fullest_target(family: str) -> LoraTarget:
    """The same for a model of public size that has every module that the family knows."""
    return lora_target(family, part(family, "model").build(part(family, "detect").fullest()))


def checkpoint_target(family: str, dit: str) -> LoraTarget:
    """The same for a checkpoint, of which only the header is read. WeightsError when it is not of this family."""
    file, detect = open_weights(dit, role="--dit"), part(family, "detect")
    variant = detect.detect(file.shapes, file.metadata, source=f"--dit {file.path.name}")
    return lora_target(family, part(family, "model").build(variant.config))


def family_of_checkpoint(dit: str) -> str:
    """The family whose DiT a file is. WeightsError when it is none's."""
    file = open_weights(dit, role="--dit")
    for family in names():
        if part(family, "detect").role_of(file.shapes) == "dit":
            return family
    raise WeightsError(
        f"--dit {file.path.name} is no DiT of {', '.join(names())} (it holds {first_few(file.shapes)}).",
        "Give another --dit.",
    )


@dataclass(frozen=True)
class Guess:
    """How well a LoRA fits a family: modules under the family's own names, under any names, and of how many."""

    family: str
    direct: int
    found: int
    total: int
    said: bool  # whether the file's metadata name this family

    @property
    def worth(self) -> tuple[bool, int, int]:
        return self.said and self.found > 0, self.direct, self.found


def guesses(keys: Iterable[str], metadata: Mapping[str, str]) -> list[Guess]:
    """The families that a LoRA with these keys fits, the best first."""
    stems = {found[0] for key in keys if (found := split(key))}
    fitting = []
    for family in names():
        target, options = fullest_target(family), part(family, "options")
        places = {stem: place for stem in stems if (place := target.find(stem))}
        direct = sum(
            stem.replace(".", "_").endswith(place.modules[0].replace(".", "_")) for stem, place in places.items()
        )
        said = (
            metadata.get("ss_base_model_version") == options.ARCHITECTURE
            or metadata.get("modelspec.architecture", "").partition("/")[0] == options.MODELSPEC_ARCHITECTURE
        )
        fitting.append(Guess(family, direct, len(places), len(stems), said))
    return sorted((guess for guess in fitting if guess.found), key=lambda guess: guess.worth, reverse=True)


def family_of_lora(path: str, given: str | None, *, role: str) -> str:
    """The family that was named, else the one that the file's names fit best. WeightsError when they fit none."""
    if given is not None:
        return find_family(given)
    tensors, metadata = read_tensors(find_weights(Path(path), role=role), role=role)
    fitting = guesses(tensors, metadata)
    if not fitting:
        raise WeightsError(
            f"{role} {Path(path).name}: none of its {len(tensors)} tensors belongs to a model of "
            f"{', '.join(names())} (first: {next(iter(tensors))}).",
            "It is a LoRA of another model, or no LoRA at all.",
        )
    return fitting[0].family


def refuse_output(output: str, inputs: Iterable[str], *, flag: str) -> None:
    """OptionError where a LoRA would be written over one that it is made from, which may be the only copy of a
    training, or where a folder stands in its place. Before anything is read.
    """
    path = Path(output)
    if path.is_dir():
        raise OptionError(
            f"{flag} {output} is a folder.", hint=f"Give {flag} the name of the new file, with its folder."
        )
    if path.resolve() in {Path(given).resolve() for given in inputs}:
        raise OptionError(f"{flag} would replace {output}, which is read.", hint=f"Give {flag} another name.")
