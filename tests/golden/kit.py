"""What a golden check is made of: a file to check, and one row for each comparison.

Knows the file format (a JSON that describes, a safetensors with inputs, weights and outputs) and nothing of the
models. Format: `shared/reference/golden`, described in tests/golden/README.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.kernels import pytorchs_kernels


@dataclass(frozen=True)
class Golden:
    """One reference file: its description and its tensors (weights under `w.`)."""

    stem: str
    info: dict[str, Any]
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The reference's weights under their original names."""
        prefix = self.info.get("weight_prefix", "w.")
        return {name[len(prefix) :]: value for name, value in self.tensors.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Row:
    """One comparison: the error found and the error allowed."""

    label: str
    error: float
    limit: float

    @property
    def good(self) -> bool:
        return self.error <= self.limit  # NaN compares false: a NaN is a miss


def by_pytorchs_kernels(check: Callable[[Golden], Iterable[Row]]) -> Callable[[Golden], list[Row]]:
    """A check that computes by the kernels which the reference computed by."""

    @wraps(check)
    def checked(golden: Golden) -> list[Row]:
        with pytorchs_kernels():
            return list(check(golden))

    return checked


def read_golden(path: Path) -> Golden:
    """Read `<stem>.json` and, where it exists, `<stem>.safetensors` beside it."""
    tensor_file = path.with_suffix(".safetensors")
    tensors = load_file(tensor_file) if tensor_file.exists() else {}
    return Golden(stem=path.stem, info=json.loads(path.read_text(encoding="utf-8")), tensors=tensors)


def row(label: str, ours: torch.Tensor, theirs: torch.Tensor, limit: float = 1e-5) -> Row:
    """Compare two tensors of equal shape by their largest absolute difference."""
    if tuple(ours.shape) != tuple(theirs.shape):
        return Row(f"{label} (shape {tuple(ours.shape)}, expected {tuple(theirs.shape)})", float("inf"), limit)
    if ours.numel() == 0:
        return Row(label, 0.0, limit)
    return Row(label, (ours.double() - theirs.double()).abs().max().item(), limit)


def same(label: str, ours: Any, theirs: Any) -> Row:
    """Compare two plain values that must be exactly equal."""
    return Row(label, 0.0 if ours == theirs else float("inf"), 0.0)
