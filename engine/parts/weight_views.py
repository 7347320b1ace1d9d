"""A checkpoint seen in another arrangement: tensors renamed, joined from several, or with their rows in another order.

Some public layouts store query, key and value apart where ours has one matrix, or two halves in the opposite order.
`ArrangedWeights` reads such a file under our names, so that everything that takes a WeightFile (strict loading, LoRA
merging, fp8) need not know. Rows are counted along the first axis. A tensor of the file may also be split.
Knows nothing of families: a family's keys.py says which rows go where.
"""

from __future__ import annotations

import torch

from .arrangement import Arrangement, arranged_shapes
from .weights import Stored, WeightFile


class ArrangedWeights(WeightFile):
    """`file` under the names and in the order of `arrangement`; tensors that it does not name are left out.

    A tensor made of several has the dtype of the first part. `identity` is the file's.
    """

    def __init__(self, file: WeightFile, arrangement: Arrangement):
        self.path, self.role, self.metadata = file.path, file.role, file.metadata
        self.shapes = arranged_shapes(arrangement, file.shapes, source=f"{file.role} {file.path.name}")
        self.dtypes = {ours: file.dtypes[parts[0].name] for ours, parts in arrangement.items()}
        self._file, self._arrangement = file, arrangement

    def read(self, name: str, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> torch.Tensor:
        parts = self._arrangement[name]
        if len(parts) == 1 and parts[0].whole:
            return self._file.read(parts[0].name, device=device, dtype=dtype)
        tensors = [self._file.read(part.name, device=device, dtype=dtype)[part.start : part.stop] for part in parts]
        return torch.cat([tensor.to(tensors[0].dtype) for tensor in tensors])

    def stored(self, name: str) -> Stored | None:
        parts = self._arrangement[name]
        return self._file.stored(parts[0].name) if len(parts) == 1 and parts[0].whole else None

    def identity(self) -> str:
        return self._file.identity()
