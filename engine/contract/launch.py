"""What stands before the first flag: `python`, `uv run`, `accelerate launch` with its own flags, a script's path.

A musubi-tuner command line names a script, and maybe a launcher before it. This file finds the script and reads those
launcher flags that mean something to a job, also those of a launcher that stands around us. Knows no option beyond
their names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from .commands import Command, family_names, find_script, script_names
from .errors import OptionError
from .wording import closest, did_you_mean

LAUNCHERS = re.compile(r"(accelerate|uv|uvx|poetry|pixi|conda|py|python(\d+(\.\d+)*)?w?)(\.exe)?", re.IGNORECASE)

_PURPOSE = re.compile(r"(?P<model>.+?)_(cache_latents|cache_text_encoder_outputs|train_network|train|generate_\w+)")

# Flags of `accelerate launch`: the option that takes their value.
TAKEN = {
    "mixed_precision": "mixed_precision",
    "num_processes": "num_processes",
    "gpu_ids": "gpu_ids",
    "main_process_port": "main_process_port",
    "dynamo_backend": "dynamo_backend",
    "dynamo_mode": "dynamo_mode",
    "dynamo_use_fullgraph": "dynamo_fullgraph",
    "dynamo_use_dynamic": "dynamo_dynamic",
}
# Flags without a value. Those that are not taken are about accelerate itself.
SWITCHES = {
    "quiet", "module", "no_python", "debug", "cpu", "multi_gpu", "tpu", "enable_cpu_affinity", "dynamo_use_fullgraph",
    "dynamo_use_dynamic", "dynamo_use_regional_compilation", "use_deepspeed", "use_fsdp", "use_megatron_lm",
    "use_parallelism_config", "same_network", "tpu_cluster", "no_tpu_cluster", "tpu_use_sudo", "downcast_bf16",
    "fp8_use_autocast_during_eval", "use_xpu", "ipex", "use_mps_device", "use_cpu",
}  # fmt: skip
REFUSED = {
    "use_deepspeed": "DeepSpeed", "use_fsdp": "FSDP", "use_megatron_lm": "Megatron-LM", "tpu": "TPUs",
    "use_parallelism_config": "parallelism configs",
}  # fmt: skip
INSTEAD = {"FSDP": ", and give the script --shard_base"}
# The same as variables, which accelerate's launcher sets in what it starts.
AROUND = {
    "ACCELERATE_MIXED_PRECISION": "mixed_precision",
    "ACCELERATE_DYNAMO_BACKEND": "dynamo_backend",
    "ACCELERATE_DYNAMO_MODE": "dynamo_mode",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "dynamo_fullgraph",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "dynamo_dynamic",
}
SILENCE = ("", "no", "false", "default")
REFUSED_AROUND = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism configs",
}  # fmt: skip


@dataclass(frozen=True)
class Launched:
    """What a launcher line comes to: the script's command and family, the options it sets, and the words behind it."""

    command: Command
    family: str | None
    words: list[str]
    data: dict[str, str] = field(default_factory=dict)


def script_of(word: str) -> str:
    """`src\\\\musubi_tuner\\\\wan_train_network.py`, `musubi_tuner.wan_train_network`, … as `wan_train_network`."""
    last = re.split(r"[/\\]", word)[-1]
    last = last[:-3] if last.endswith(".py") else last.rpartition(".")[2]
    return last.replace("-", "_")


def launched(words: list[str]) -> Launched | None:
    """Read a line that starts with a launcher or a script. None when it does neither."""
    if not words or words[0].startswith("-"):
        return None
    found = find_script(script_of(words[0]))
    if found is not None:
        return Launched(*found, words[1:])
    if words[0].endswith(".py"):
        raise _unknown_script(words[0])
    if not LAUNCHERS.fullmatch(re.split(r"[/\\]", words[0])[-1]):
        return None
    known = set(script_names())
    for index, word in enumerate(words):
        if script_of(word) in known:
            found = find_script(script_of(word))
            if found is not None:
                before = words[:index]
                flags = before[before.index("launch") + 1 :] if "launch" in before else []
                return Launched(*found, words[index + 1 :], _accelerate(flags))
    scripts = [word for word in words if word.endswith(".py")]
    raise _unknown_script(scripts[0] if scripts else words[0])


def _of_another_model(script: str) -> bool:
    """Whether it is musubi-tuner's script for a model that is not here: its nearest name would train something else."""
    parts = {name: _PURPOSE.fullmatch(name) for name in (script, *script_names())}
    ours = {found["model"] for name, found in parts.items() if found and name != script}
    ours |= {words for name in family_names() for words in (name.replace("-", "_"), name.partition("-")[0])}
    asked = parts[script]
    return asked is not None and not closest(asked["model"], ours)


def _unknown_script(word: str) -> OptionError:
    if _of_another_model(script_of(word)):
        return OptionError(
            f"{word} belongs to a model that this engine does not have.", hint=f"It has {', '.join(family_names())}."
        )
    otherwise = "Name a script such as wan_train_network.py, or a command: see --help."
    hint = did_you_mean(script_of(word), script_names(), otherwise)
    return OptionError(f"{word} is not a script that this engine knows.", hint=hint)


def _accelerate(words: list[str]) -> dict[str, str]:
    """The options that accelerate's own flags set, as text. Refuses what the engine cannot do."""
    data: dict[str, str] = {}
    several = False
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("-"):
            continue
        name, equals, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if name not in SWITCHES and not equals and queue and not queue[0].startswith("-"):
            value = queue.pop(0)
        if name in REFUSED or (name == "num_machines" and value not in ("", "1")):
            what = REFUSED.get(name, "several machines")
            raise OptionError(
                f"accelerate's --{name} asks for {what}, which the engine cannot do.",
                hint=f"Leave out --{name}{INSTEAD.get(what, '')}.",
            )
        if name in ("cpu", "use_cpu"):
            data["device"] = "cpu"
        elif name == "multi_gpu":
            several = True
        elif name in TAKEN:
            data[TAKEN[name]] = value or "true"
    return _resolved(data, several=several)


def _resolved(data: dict[str, str], *, several: bool) -> dict[str, str]:
    """What the flags come to together. `several`: --multi_gpu was among them."""
    gpus = data.get("gpu_ids", "all")
    if several and "num_processes" not in data:
        if gpus == "all":
            raise OptionError(
                "accelerate's --multi_gpu needs to know how many processes to start.",
                hint="Add --num_processes with the number of GPUs.",
                names=("num_processes",),
            )
        data["num_processes"] = str(len(gpus.split(",")))
    if "dynamo_backend" in data:
        data["dynamo_backend"] = data["dynamo_backend"].upper()
    if data.get("num_processes", "1") == "1":  # one process has one GPU, and nobody to meet
        data = {name: value for name, value in data.items() if name not in ("gpu_ids", "main_process_port")}
        if gpus != "all":
            data.setdefault("device", f"cuda:{gpus.partition(',')[0]}")
    return data


def surrounding(environment: Mapping[str, str]) -> dict[str, str]:
    """The options that an outer `accelerate launch … -m engine …` has set, which it passes on as variables.

    It passes on its defaults too, which cannot be told from what the person said, so they say nothing here.
    """
    for variable, what in REFUSED_AROUND.items():
        if environment.get(variable, "").lower() == "true":
            raise OptionError(
                f"accelerate launch asks for {what}, which the engine cannot do.",
                hint=f"Leave it out{INSTEAD.get(what, '')}.",
            )
    said = {option: environment.get(variable, "") for variable, option in AROUND.items()}
    data = {option: value for option, value in said.items() if value.lower() not in SILENCE}
    if "dynamo_backend" not in data:
        data = {option: value for option, value in data.items() if not option.startswith("dynamo_")}
    if environment.get("ACCELERATE_USE_CPU", "").lower() == "true":
        data["device"] = "cpu"
    return _resolved(data, several=False)
