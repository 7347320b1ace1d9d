"""One sample's cached tensors as a batch, for models that take only batches; and moving a conditioning to a device.

Training's tensors from cache files and those that generation has just encoded become a conditioning in the same way;
engine/data/collate.py does it for many samples. Knows no family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

VARLEN = "varlen_"


def batch_of_one(tensors: Mapping[str, Tensor], *, device: torch.device | str) -> dict[str, Any]:
    """Each tensor with a batch dimension of 1 in front, on `device`; `varlen_x` becomes `x`, a list of one tensor."""
    batch: dict[str, Any] = {}
    for name, tensor in tensors.items():
        moved = tensor.to(device)
        if name.startswith(VARLEN):
            batch[name.removeprefix(VARLEN)] = [moved]
        else:
            batch[name] = moved.unsqueeze(0)
    return batch


def moved(cond: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """`cond` with its tensors and lists of tensors on `device`; other values as they are."""

    def place(value: Any) -> Any:
        if isinstance(value, list):
            return [place(one) for one in value]
        return value.to(device) if isinstance(value, Tensor) else value

    return {name: place(value) for name, value in cond.items()}
