"""The table of commands: what each is called, which options it has, which file of `tasks/` does the work.

A family adds its own sections to a command (`SECTIONS` in its `options.py`), its script names (`SCRIPTS`) and examples
(`EXAMPLES`). Knows no family by name: families are listed, and asked for their options only.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import options as shared
from . import rules
from .errors import OptionError
from .schema import Section
from .wording import did_you_mean

if TYPE_CHECKING:
    from .job import Job


@dataclass(frozen=True, kw_only=True)
class Command:
    """One verb. `module` is the file in `tasks/`; `scripts` are musubi-tuner's names for it, without folder and .py.

    `family`: a family follows the verb. `available` False: declared, but its task does not exist yet. `rules` are what
    options of different sections demand of each other, `resolved` gives values of open ones that follow from others.
    `alone`: one process does it, however many the job asks for.
    """

    verb: str
    help: str
    module: str
    sections: tuple[type[Section], ...]
    family: bool = False
    scripts: tuple[str, ...] = ()
    available: bool = True
    alone: bool = False
    rules: Callable[[Job], None] | None = None
    resolved: Callable[[Job], dict[str, Any]] | None = None
    example: str = ""


COMMANDS: tuple[Command, ...] = (
    Command(
        verb="cache-latents",
        help="Encode the clips of a dataset with the VAE, once.",
        module="cache_latents",
        sections=(
            shared.Data,
            shared.Models,
            shared.LatentCaching,
            shared.MemoryPlan,
            shared.Processes,
            shared.Run,
        ),
        family=True,
        rules=rules.cache_latents,
    ),
    Command(
        verb="cache-text",
        help="Encode the captions of a dataset, once.",
        module="cache_text",
        sections=(shared.Data, shared.Caching, shared.Processes, shared.Run),
        family=True,
        rules=rules.cache_text,
    ),
    Command(
        verb="train",
        help="Train a LoRA on the caches.",
        module="train",
        sections=(
            shared.Data,
            shared.TrainingModels,
            shared.Training,
            shared.Network,
            shared.Optimizer,
            shared.Schedule,
            shared.Timesteps,
            shared.TrainingPrecision,
            shared.TrainingMemory,
            shared.Attention,
            shared.Saving,
            shared.Samples,
            shared.Validation,
            shared.Logging,
            shared.Metadata,
            shared.HuggingFace,
            shared.Launch,
            shared.Run,
        ),
        family=True,
        rules=rules.train,
        resolved=rules.resolved_training,
    ),
    Command(
        verb="generate",
        help="Generate videos, with or without LoRAs.",
        module="generate",
        sections=(
            shared.Prompting,
            shared.GenerationModels,
            shared.LoraStack,
            shared.Output,
            shared.Previews,
            shared.GenerationPrecision,
            shared.GenerationMemory,
            shared.AttentionMode,
            shared.Run,
        ),
        family=True,
        rules=rules.generate,
    ),
    Command(
        verb="dataset check",
        help="Read a dataset and report what is wrong with it, and how many clips and buckets it yields.",
        module="dataset_check",
        sections=(shared.Data, shared.DatasetTools, shared.Run),
        example="--dataset_config dataset.toml",
    ),
    Command(
        verb="dataset preview",
        help="Draw a contact sheet of the clips as they will be cached.",
        module="dataset_preview",
        sections=(shared.Data, shared.DatasetTools, shared.Run),
        example="--dataset_config dataset.toml --sheet_path sheet.png",
    ),
    Command(
        verb="lora convert",
        help="Convert a LoRA between the names of musubi-tuner, ComfyUI and diffusers.",
        module="lora_convert",
        sections=(shared.LoraConvert, shared.Run),
        scripts=("convert_lora",),
        example="--input lora.safetensors --output lora-comfy.safetensors --target other",
    ),
    Command(
        verb="lora merge",
        help="Merge LoRAs into a model file, or into one LoRA.",
        module="lora_merge",
        sections=(shared.LoraMerge, shared.Run),
        scripts=("merge_lora",),
        example="--dit dit.safetensors --lora_weight lora.safetensors --save_merged_model merged.safetensors",
    ),
    Command(
        verb="lora info",
        help="Show what is in a LoRA file, and which models it loads into.",
        module="lora_info",
        sections=(shared.LoraInfo, shared.Run),
        example="lora.safetensors",
    ),
    Command(
        verb="lora ema",
        help="Average the LoRAs of one training.",
        module="lora_ema",
        sections=(shared.LoraEma, shared.Run),
        scripts=("lora_post_hoc_ema",),
        example="lora-step00000100.safetensors lora-step00000200.safetensors --output_file lora-ema.safetensors",
    ),
    Command(
        verb="serve",
        help="Stay running, and run the jobs named on stdin one after another; models loaded by a generation are kept.",
        module="serve",
        sections=(shared.Run,),
        rules=rules.serve,
    ),
    Command(
        verb="plan",
        help="Predict the memory a command needs, and what options make it fit: `plan train wan …same options…`.",
        module="plan",
        sections=(shared.Run,),
        alone=True,
        example="train wan --dataset_config dataset.toml --dit wan2.1_t2v_14B_bf16.safetensors --vram 12GB",
    ),
    Command(
        verb="bench",
        help="Measure speed and memory on this machine, with full-size models made for it.",
        module="bench",
        sections=(shared.Bench, shared.Run),
        example="train wan --mode plain free",
    ),
    Command(
        verb="doctor",
        help="Report what the engine finds on this machine: GPU, packages, folders.",
        module="doctor",
        sections=(shared.Run,),
    ),
    Command(
        verb="demo",
        help="Run the whole workflow on small models made for it.",
        module="demo",
        sections=(shared.Demo, shared.Run),
        example="--out demo",
    ),
    Command(
        verb="docs",
        help="Write the reference pages of all options.",
        module="docs",
        sections=(shared.Docs, shared.Run),
        example="--check",
    ),
)

# Scripts of musubi-tuner whose families are still to come; a family's own SCRIPTS comes first.
FUTURE_SCRIPTS = (
    "hv_train", "caption_images_by_qwen_vl",
)  # fmt: skip


def families() -> ModuleType:
    """The finder of families. Looked up by name: the contract imports nothing above it, and of a family it reads the
    `options.py` alone, which stands on the standard library too.
    """
    return importlib.import_module("..families", __package__)


def example_of(command: Command, family: str | None) -> str:
    """The options of an example, "" without one; a family has its own (`EXAMPLES`), since its files are its own."""
    if family is None or not command.family:
        return command.example
    example: str = getattr(family_options(family), "EXAMPLES", {}).get(command.verb, "")
    return example


def family_names() -> list[str]:
    """The families as they are written on the command line."""
    return [name.replace("_", "-") for name in families().names()]


def family_options(family: str) -> ModuleType:
    """A family's `options.py`."""
    module: ModuleType = families().part(family, "options")
    return module


def find(verb: str) -> Command:
    """The command of a verb. OptionError names the nearest one."""
    for command in COMMANDS:
        if command.verb == verb:
            return command
    verbs = [command.verb for command in COMMANDS]
    raise OptionError(f"There is no command {verb}.", hint=did_you_mean(verb, verbs, "See --help."))


def find_family(family: str) -> str:
    """The folder name of a family given in any spelling. OptionError names those that exist."""
    folder = family.replace("-", "_").lower()
    if folder in families().names():
        return folder
    known = family_names()
    hint = did_you_mean(family, known, f"There are: {', '.join(known)}.")
    raise OptionError(f"There is no model family {family}.", hint=hint, names=("family",))


def find_script(script: str) -> tuple[Command, str | None] | None:
    """Command and family of one of musubi-tuner's script names (no folder, no .py); None when it is no such name."""
    for command in COMMANDS:
        if script in command.scripts:
            return command, None
    for family in families().names():
        verb = getattr(family_options(family), "SCRIPTS", {}).get(script)
        if verb:
            return find(verb), family
    if script in FUTURE_SCRIPTS:
        raise OptionError(
            f"{script} belongs to a part that this version does not have yet.",
            hint=f"Families so far: {', '.join(family_names())}.",
        )
    return None


def script_names() -> list[str]:
    """Every script name that `find_script` knows something about."""
    own = [script for command in COMMANDS for script in command.scripts]
    for family in families().names():
        own += getattr(family_options(family), "SCRIPTS", {})
    return [*own, *FUTURE_SCRIPTS]


def sections_of(command: Command, family: str | None) -> tuple[type[Section], ...]:
    """The sections of a command in the order of its help.

    A family's subclass takes the place of the shared section it is made from. A section of the family's own stands
    behind the shared one that precedes it in the family's list, else first; `late` ones and then `Run` come last.
    """
    own = getattr(family_options(family), "SECTIONS", {}).get(command.verb, ()) if family and command.family else ()
    replaced = {base: section for base in command.sections for section in own if issubclass(section, base)}
    behind: dict[type[Section] | None, list[type[Section]]] = {}
    before: type[Section] | None = None
    for section in own:
        if section in replaced.values():
            before = section
        elif not section.late:
            behind.setdefault(before, []).append(section)
    ordered = list(behind.get(None, []))
    for base in command.sections:
        if base is not shared.Run:
            section = replaced.get(base, base)
            ordered += [section, *behind.get(section, [])]
    ordered += [section for section in own if section.late and section not in replaced.values()]
    return (*ordered, *(section for section in command.sections if section is shared.Run))


def for_family(family: str) -> list[Command]:
    """The family commands that a family takes part in."""
    sections = getattr(family_options(family), "SECTIONS", {})
    return [command for command in COMMANDS if command.family and command.verb in sections]
