"""Writing a checkpoint in shards: a folder with files of limited size, and the index that says what is in which.

The names are those of diffusers, which can open such a folder, as can `open_weights`. The folder appears whole or not
at all. Given up: replacing an existing folder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ..contract.files import whole_folder, write_text
from .weights import Layout, stream_weights

STEM = "diffusion_pytorch_model"


def stream_shards(
    folder: Path,
    layout: Layout,
    read: Callable[[str], torch.Tensor],
    *,
    shard_bytes: int,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """As `stream_weights`, in files of at most `shard_bytes` each, unless a single tensor is larger. DiskError."""
    shards = split(layout, shard_bytes)
    names = [f"{STEM}-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    with whole_folder(folder) as temporary:
        for name, shard in zip(names, shards, strict=True):
            stream_weights(temporary / name, shard, read, metadata=metadata)
        index = {
            "metadata": {"total_size": sum(_size(*entry) for entry in layout.values())},
            "weight_map": {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard},
        }
        write_text(temporary / f"{STEM}.safetensors.index.json", json.dumps(index, indent=2) + "\n")


def split(layout: Layout, shard_bytes: int) -> list[Layout]:
    """The tensors in their order, as many in each shard as fit."""
    shards: list[dict[str, tuple[torch.dtype, tuple[int, ...]]]] = [{}]
    room = shard_bytes
    for name, entry in layout.items():
        if shards[-1] and _size(*entry) > room:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = entry
        room -= _size(*entry)
    return list(shards)


def _size(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * math.prod(shape)
