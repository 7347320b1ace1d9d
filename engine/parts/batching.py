"""One sample's cached tensors as a batch, for models that know batches only.

What training reads from cache files and what generation has just encoded go the same way into a model's conditioning;
`engine/data/collate.py` does this for many samples. Knows no family.
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
