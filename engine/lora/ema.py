"""Averaging the checkpoints of one training after the fact: exponential with a linear beta, or a power function.

Works on tensors under the files' own names, so it needs no model and takes every kind of adapter. Gives the numbers of
musubi-tuner 30c658c's lora_post_hoc_ema.py. With a power function the first file has no weight: it only sets the number
formats.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..contract.errors import OptionError, WeightsError

_STEP_IN_NAME = re.compile(r"(?:-step(?P<step>\d+)|-(?P<epoch>\d{6}))$")


def power_gamma(sigma_rel: float) -> float:
    """The exponent of a power-function average of this relative width, 0 < sigma_rel <= 12 ** -0.5.

    Algorithm 2 of arXiv 2312.02696. OptionError for a larger width, which needs weights that fall with time.
    """
    inverse = sigma_rel**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    real = [float(root.real) for root in roots if abs(root.imag) < 1e-9 and root.real >= -1e-6]
    if not real:
        raise OptionError(
            f"--sigma_rel {sigma_rel:g} is too wide: the weights of the average would fall with time.",
            "Use a value above 0 and up to 0.2886; 0.05 to 0.2 is usual.",
        )
    return max(0.0, *real)


def betas(files: int, *, beta: float, beta2: float | None = None, sigma_rel: float | None = None) -> list[float]:
    """The weight (0..1) of the average so far as each file after the first is added."""
    count = files - 1
    if sigma_rel is not None:
        gamma = power_gamma(sigma_rel)
        return [(1 - 1 / step) ** (gamma + 1) for step in range(1, count + 1)]
    last = beta if beta2 is None else beta2
    return [beta + (last - beta) * (number / (count - 1) if count > 1 else 0.0) for number in range(count)]


def average(files: Iterable[tuple[str, Mapping[str, Tensor]]], weights: Sequence[float]) -> dict[str, Tensor]:
    """The average of `files`, (name, tensors) in order, computed in float32, in the first file's number formats.

    `weights`: from `betas`. Integers keep the first file's values. WeightsError: names, shapes or alphas differ.
    """
    running: dict[str, Tensor] = {}
    stored: dict[str, torch.dtype] = {}
    first = ""
    for number, (name, tensors) in enumerate(files):
        if number == 0:
            first = name
            stored = {key: value.dtype for key, value in tensors.items()}
            running = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
            continue
        _check_same(running, tensors, first, name)
        for key, value in running.items():
            if value.is_floating_point() and not key.endswith(".alpha"):
                beta = weights[number - 1]
                running[key] = value * beta + tensors[key].float() * (1 - beta)
    return {key: value.to(stored[key]) for key, value in running.items()}


def _check_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor], first: str, second: str) -> None:
    hint = "Average checkpoints of one training only."
    if differing := sorted(one.keys() ^ other.keys()):
        raise WeightsError(f"{first} and {second} hold different tensors (first: {differing[0]}).", hint)
    for key, value in one.items():
        if value.shape != other[key].shape:
            raise WeightsError(
                f"{key} has shape {tuple(value.shape)} in {first}, {tuple(other[key].shape)} in {second}.", hint
            )
        if key.endswith(".alpha") and not torch.allclose(value.float(), other[key].float()):
            raise WeightsError(f"{key} is {float(value):g} in {first} and {float(other[key]):g} in {second}.", hint)


def in_order(files: Mapping[Path, Mapping[str, str]]) -> tuple[list[Path], str]:
    """The `files` (path -> metadata) from the first checkpoint to the last, and what they were ordered by, in words.

    By the training step in the metadata; else by step or epoch in the names, where a name without one is the last; else
    by modification time, which copying changes.
    """
    by_metadata = {path: _number(metadata.get("ss_steps")) for path, metadata in files.items()}
    found = [number for number in by_metadata.values() if number is not None]
    if len(set(found)) == len(files):
        return sorted(files, key=lambda path: by_metadata[path] or 0), "training step"
    by_name = {path: _STEP_IN_NAME.search(path.stem) for path in files}
    kinds = {match.lastgroup for match in by_name.values() if match}
    if len(kinds) == 1 and sum(match is None for match in by_name.values()) <= 1:
        last = float("inf")
        numbers = {
            path: last if match is None else float(match[match.lastgroup or 0]) for path, match in by_name.items()
        }
        return sorted(files, key=lambda path: numbers[path]), f"{kinds.pop()} in the name"
    return sorted(files, key=lambda path: path.stat().st_mtime), "time of writing"


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
