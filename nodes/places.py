"""Which option of a family is on which node. There is no list of families: they are found, and asked for their options.

An option is a setting that all families share (on a settings node), says which model it is (on the family's Model
Paths), or belongs to one command only (on that command's node). A new family gets its nodes from this.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

from ..engine import families
from ..engine.contract import commands
from ..engine.contract import options as shared
from ..engine.contract.schema import Option, Section, listed, options
from . import allowed, paths

_OWN_SETTINGS: dict[str, tuple[type[Section], ...]] = {
    "OptimizerConfig": (shared.Optimizer, shared.Schedule),
    "SamplingConfig": (shared.Samples,),
    "MemoryOptimizer": (shared.TrainingPrecision, shared.TrainingMemory, shared.Attention),
}
_ELSEWHERE = (shared.Data, shared.TrainingModels, shared.Run)


def _settings() -> dict[str, tuple[type[Section], ...]]:
    """Settings nodes of a training, and the shared sections on each; those without a node of their own are on the
    first."""
    taken = {section for sections in _OWN_SETTINGS.values() for section in sections}
    rest = [section for section in commands.find("train").sections if section not in {*taken, *_ELSEWHERE}]
    return {"LoRATrainingConfig": tuple(rest), **_OWN_SETTINGS}


SETTINGS = _settings()
ON_TRAINER = ("output_name", "resume", "fresh")
CACHING, TRAIN, GENERATE = ("cache-latents", "cache-text"), "train", "generate"
_NOT_MODELS = (shared.Data, shared.Run)
RUN = tuple(option.name for option in options(shared.Run))


@cache
def family_names() -> list[str]:
    """The families, by their folders' names, without those of the tests."""
    return families.names(extra=False)


@cache
def own(family: str) -> ModuleType:
    """A family's options.py."""
    return commands.family_options(family)


def node_name(family: str) -> str:
    """What the family is called in the ids of its nodes, which never change: `NODE_NAME` in its options.py."""
    given: str = getattr(own(family), "NODE_NAME", "")
    return given or "".join(part.capitalize() for part in family.split("_"))


def title(family: str) -> str:
    """What the family is called on its nodes."""
    return str(own(family).TITLE)


@cache
def of_command(verb: str, family: str | None) -> dict[str, Option]:
    """Every option of a command by name."""
    return listed(commands.sections_of(commands.find(verb), family))


@cache
def has(verb: str, family: str) -> bool:
    """Whether a family takes part in a command that can be run."""
    command = commands.find(verb)
    return command.available and command in commands.for_family(family)


def usable(option: Option) -> bool:
    return not option.accepted


@cache
def settings_options(name: str) -> list[Option]:
    """The options of a settings node."""
    return [
        option for section in SETTINGS[name] for option in options(section) if option.name not in ON_TRAINER
    ]  # fmt: skip


@cache
def _shared_names() -> set[str]:
    """Options that a shared section declares, apart from those that name model files."""
    sections: set[type[Section]] = set()
    for command in commands.COMMANDS:
        sections.update(command.sections)
    sections = {section for section in sections if not issubclass(section, shared.Models)}
    return {option.name for section in sections for option in options(section)}


@cache
def model_options(family: str) -> list[Option]:
    """The options of the family's Model Paths: its files, and its own options that several of its commands have."""
    verbs = [verb for verb in (*CACHING, TRAIN, GENERATE) if has(verb, family)]
    known, shared_names = [of_command(verb, family) for verb in verbs], _shared_names()
    found: dict[str, Option] = {}
    for command in known:
        for option in command.values():
            times = sum(usable(other[option.name]) for other in known if option.name in other)
            is_file = option.file_kind in paths.MODEL_FOLDERS and not option.many and option.file_kind != "lora"
            own_of_several = option.name not in shared_names and times > 1 and not option.file_kind
            if usable(option) and option.name not in allowed.LEFT_OUT and (is_file or own_of_several):
                before = found.get(option.name)
                if before is None or (before.advanced and not option.advanced):  # common if it is so in one command
                    found[option.name] = option
    kinds = list(paths.MODEL_FOLDERS)
    return sorted(found.values(), key=lambda o: kinds.index(o.file_kind) if o.file_kind else len(kinds))


@cache
def task_options(verb: str, family: str) -> list[Option]:
    """The options that are left for the command's own node."""
    elsewhere = {option.name for option in (*model_options(family), *stack_options(family))}
    if verb == TRAIN:
        elsewhere |= {option.name for name in SETTINGS for option in settings_options(name)}
    for section in _NOT_MODELS:
        elsewhere |= {option.name for option in options(section)}
    return [option for name, option in of_command(verb, family).items() if name not in elsewhere]


@cache
def stack_options(family: str) -> list[Option]:
    """The family's own options about merged LoRAs, besides those that every stack has."""
    common = {option.name for option in options(shared.LoraStack)}
    for section in commands.sections_of(commands.find(GENERATE), family):
        if issubclass(section, shared.LoraStack):
            return [option for option in options(section) if option.name not in common]
    return []


@cache
def any_family_options(verb: str) -> dict[str, Option]:
    """The options of a command's node that serves all families, each once."""
    found: dict[str, Option] = {}
    for family in family_names():
        if has(verb, family):
            for option in task_options(verb, family):
                if usable(option):
                    found.setdefault(option.name, option)
    return found


@cache
def common_options(verb: str) -> list[Option]:
    """The options of a command's node that every family has."""
    each = [
        {option.name: option for option in task_options(verb, family) if usable(option)}
        for family in family_names()
        if has(verb, family)
    ]
    return [option for name, option in each[0].items() if all(name in other for other in each)] if each else []


@cache
def expert_endings(family: str) -> list[str]:
    """What is appended to a LoRA's name for each expert but the first, such as `_high_noise`; mostly there is none."""
    names = of_command(GENERATE, family) if has(GENERATE, family) else {}
    stem = "lora_weight"
    return [name[len(stem) :] for name in names if name.startswith(f"{stem}_") and usable(names[name])]
