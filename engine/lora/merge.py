"""Merging LoRAs into weights while these are loaded: W += multiplier * change(W), then DoRA's lengths if there are any.

With a multiplier m a DoRA moves W the fraction m of the way to its result, as in ComfyUI; lycoris applies the whole
change and lets m act on the lengths alone. Made for the `transform` of `parts.weights.load_into`, which sees each
parameter once, under our names, before it is quantised. Knows no family and opens no checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..contract.errors import OptionError, WeightsError
from ..contract.events import Say, Warning_
from ..contract.wording import first_few
from .files import LoraFile, read_lora
from .names import LoraTarget
from .weights import decomposed

Transform = Callable[[str, Tensor], Tensor]


def load_loras(
    paths: Sequence[Path | str],
    multipliers: Sequence[float] = (),
    *,
    target: LoraTarget,
    say: Say,
    role: str = "--lora_weight",
) -> list[tuple[LoraFile, float]]:
    """Read a stack of LoRAs; a missing multiplier is 1. Keys that fit no module are reported in one warning per
    file."""
    if len(multipliers) > len(paths):
        raise OptionError(
            f"{len(multipliers)} multipliers are given for {len(paths)} files.", f"Give one for each {role}."
        )
    loaded = []
    for number, path in enumerate(paths):
        file = read_lora(path, target, role=role)
        report_unmatched(file, say)
        loaded.append((file, float(multipliers[number]) if number < len(multipliers) else 1.0))
    return loaded


def report_unmatched(file: LoraFile, say: Say) -> None:
    """Say one warning that lists the keys of a LoRA for which the model has no module."""
    if not file.unmatched:
        return
    text = f"{file.path.name}: {len(file.unmatched)} tensors fit no module of this model and are left out: "
    say(Warning_(message=text + first_few(file.unmatched, count=5)))


def refuse_other_size(file: LoraFile, target: LoraTarget) -> None:
    """WeightsError for a LoRA of a larger or smaller variant: its names fit, but its shapes do not. Needs only the
    shapes, so the error comes before a text encoder and a DiT are loaded in vain.
    """
    for path, weights in file.modules.items():
        shape = target.shapes.get(path)
        if shape and weights.out_features != shape[0]:
            raise WeightsError(
                f"{file.path.name}: {path} has {weights.out_features} rows, but {shape[0]} in this model.",
                "This LoRA was made for another size of the model.",
            )


def select(file: LoraFile, *, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> LoraFile:
    """Keep the modules that any `include` pattern matches (all if there is none) and no `exclude` pattern does.

    Patterns may match anywhere in the musubi-tuner name (`lora_unet_blocks_0_…`) or in the dotted path. An empty one
    is none.
    """

    def found(patterns: Sequence[str], path: str) -> bool:
        names = (path, "lora_unet_" + path.replace(".", "_"))
        try:
            return any(re.search(pattern, name) for pattern in patterns for name in names)
        except re.error as error:
            raise OptionError(f"{error.pattern!r} is not a regular expression ({error}).") from error

    def kept(path: str) -> bool:
        return (not wanted or found(wanted, path)) and not found(unwanted, path)

    wanted, unwanted = list(filter(None, include)), list(filter(None, exclude))
    modules = {path: weights for path, weights in file.modules.items() if kept(path)}
    differences = {name: value for name, value in file.differences.items() if kept(name.rpartition(".")[0])}
    if not modules and not differences:
        raise OptionError(
            f"{file.path.name}: the patterns leave none of its modules.",
            "Change --include_patterns or --exclude_patterns.",
        )
    return replace(file, modules=modules, differences=differences)


def changed_by(file: LoraFile) -> set[str]:
    """Names of the parameters that merging a LoRA changes."""
    return {f"{path}.weight" for path in file.modules} | set(file.differences)


def merger(loras: Sequence[tuple[LoraFile, float]], *, device: torch.device | str | None = None) -> Transform:
    """A transform for `load_into` that adds all LoRAs to the parameters that they change, in float32.

    `device`: where to compute (default: where the weight is). The result has the weight's own dtype and device. fp8
    without scales may be merged into; fp8 with scales must be dequantised first, as `load_into` does.
    """
    changes: dict[str, list[tuple[LoraFile, float]]] = {}
    for file, multiplier in loras:
        for name in changed_by(file):
            changes.setdefault(name, []).append((file, multiplier))

    def transform(name: str, tensor: Tensor) -> Tensor:
        parts = changes.get(name)
        if not parts:
            return tensor
        where = tensor.device if device is None else torch.device(device)
        merged = tensor.to(where, torch.float32)
        for file, multiplier in parts:
            merged = _add(merged, name, file, multiplier)
        return merged.to(tensor.device, tensor.dtype)

    return transform


def _add(weight: Tensor, name: str, file: LoraFile, multiplier: float) -> Tensor:
    """`weight` (float32) with the changes of one file."""
    path, _, parameter = name.rpartition(".")
    before = weight
    if name in file.differences:
        change = file.differences[name].to(weight.device, torch.float32)
        weight = weight + multiplier * _shaped(change, before, name, file)
    if parameter != "weight" or path not in file.modules:
        return weight
    adapter = file.modules[path]
    change = _shaped(adapter.change(weight.device), before, name, file)
    if adapter.dora is not None:
        change = decomposed(before + change, adapter.dora) - before
    return weight + multiplier * change


def _shaped(change: Tensor, weight: Tensor, name: str, file: LoraFile) -> Tensor:
    if change.numel() != weight.numel() or change.shape[0] != weight.shape[0]:
        raise WeightsError(
            f"{file.path.name}: the change of {name} has shape {tuple(change.shape)}, but the parameter has "
            f"{tuple(weight.shape)}.",
            "This LoRA was made for another size of the model.",
        )
    return change.reshape(weight.shape)
