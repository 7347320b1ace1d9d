"""Texts of the engine in the words of a node: a flag is a widget or an input there, and may have another name."""

from __future__ import annotations

import re

_NAMES = {
    "from_file": "prompts",
    "sample_prompts": "prompts",
    "logging_dir": "tensorboard",
}
_PICTURES = ("image", "end_image", "reference_image", "video", "control", "control_image", "control_image_mask")
_NAMES.update({f"{name}_path": name for name in _PICTURES})
_DATASETS = re.compile(r"(\w+_)?dataset_config")
_STACKS = re.compile(r"(lora_weight|base_weights)(_high_noise)?")
_NAMED = re.compile(rf"\b({'|'.join(_NAMES)}|{_STACKS.pattern}|{_DATASETS.pattern})\b")
_FLAG = re.compile(r"(?<![\w-])--(?=[a-z])")
_COMMAND = re.compile(r"(`\w[^`]* [^`]*`)")


def on_node(name: str) -> str:
    """What an option is called on a node: `image_path` → `image`, `lora_weight_high_noise` → `loras_high_noise`."""
    stack = _STACKS.fullmatch(name)
    if stack:
        return {"lora_weight": "loras", "base_weights": "base_loras"}[stack[1]] + (stack[2] or "")
    if _DATASETS.fullmatch(name):
        return name.removesuffix("_config")
    return _NAMES.get(name, name)


def of_node(text: str) -> str:
    """`Give --image_path.` → `Give image.` A command in backticks stays as it is typed."""
    parts = _COMMAND.split(text)
    return "".join(part if place % 2 else _plain(part) for place, part in enumerate(parts))


def _plain(text: str) -> str:
    return _NAMED.sub(lambda found: on_node(found[0]), _FLAG.sub("", text))
