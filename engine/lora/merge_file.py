"""Writing a checkpoint with LoRAs merged into it, tensor by tensor: never more than one layer is in memory.

The new file has the layout, the names and the number formats of the old one, diffusers' separate layers included. Knows
no family: the family's arrangement of keys says which tensors of the file make up which of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..contract.errors import WeightsError
from ..parts.arrangement import Arrangement
from ..parts.weight_shards import stream_shards
from ..parts.weight_views import ArrangedWeights
from ..parts.weights import FP8_DTYPES, WeightFile, open_weights, stream_weights
from .merge import Transform


def open_unscaled(path: str | Path, *, role: str) -> WeightFile:
    """Open a checkpoint whose stored numbers are its weights. WeightsError for fp8 with scales: adding to it would
    requantise it."""
    file = open_weights(path, role=role, dequantize=False)
    if any(dtype in FP8_DTYPES for dtype in file.dtypes.values()) and any("scale" in name for name in file.shapes):
        raise WeightsError(
            f"{role} {file.path.name} holds scaled fp8 weights, into which nothing can be merged exactly.",
            "Merge into the bf16 version of this model, or let `generate` merge while it loads.",
        )
    return file


def merge_into(
    file: WeightFile,
    path: str | Path,
    *,
    arrangement: Arrangement,
    transform: Transform,
    metadata: Mapping[str, str],
    shard_bytes: int | None = None,
    on_tensor: Callable[[], None] = lambda: None,
) -> None:
    """Write `file` to `path` with `transform(our name, tensor)` applied to every tensor of ours. DiskError: no room.

    With `shard_bytes`, `path` is a new folder of files that are no larger than that (parts/weight_shards.py).
    """
    source = _Merged(file, arrangement, transform)

    def read(name: str) -> Tensor:
        tensor = source.read(name)
        on_tensor()
        return tensor

    layout = {name: (file.dtypes[name], shape) for name, shape in file.shapes.items()}
    metadata = {**file.metadata, **metadata}
    if shard_bytes is None:
        stream_weights(path, layout, read, metadata=metadata)
    else:
        stream_shards(Path(path), layout, read, shard_bytes=shard_bytes, metadata=metadata)


class _Merged:
    """Reads a file's tensors, by the file's own names, with the changes applied."""

    def __init__(self, file: WeightFile, arrangement: Arrangement, transform: Transform) -> None:
        self._file, self._transform = file, transform
        self._ours = ArrangedWeights(file, arrangement)
        self._places: dict[str, list[tuple[str, int, slice]]] = {}
        for ours, parts in arrangement.items():
            row = 0
            for part in parts:
                rows = slice(part.start, part.stop)
                self._places.setdefault(part.name, []).append((ours, row, rows))
                if not (len(parts) == 1 and part.whole):
                    row += len(range(file.shapes[part.name][0])[rows])
        self._last: tuple[str, Tensor] = ("", torch.empty(0))

    def read(self, name: str) -> Tensor:
        places = self._places.get(name, [])
        tensor = self._file.read(name)
        for ours, row, rows in places:
            changed = self._changed(ours)
            if changed.shape == tensor.shape and rows == slice(None, None):
                return changed.to(tensor.dtype)
            part = tensor[rows]
            tensor[rows] = changed[row : row + len(part)].to(tensor.dtype)
        return tensor

    def _changed(self, ours: str) -> Tensor:
        """A tensor of ours, changed. The last one is kept, as the parts of one layer follow each other in the file."""
        if self._last[0] != ours:
            self._last = (ours, self._transform(ours, self._ours.read(ours)))
        return self._last[1]
