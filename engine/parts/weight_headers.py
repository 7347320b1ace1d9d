"""Names, shapes and number formats of a checkpoint without torch, which takes seconds to import: for the planner.

A safetensors header has them all. PyTorch files need torch, which does not read weights for this either.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..contract.errors import WeightsError
from .safetensors_header import read_header
from .weight_paths import DOWNLOAD_HINT, find_files

SCALES = (("scale_weight", "weight"), ("weight_scale", "weight"))
"""(last part of a scale's name, last part of its fp8 weight's name)."""
FP8_NOTES = ("scaled_fp8", "scale_input", "input_scale", "comfy_quant")
"""Last parts of names of tensors that describe how fp8 was made and are not weights."""
NUMBER_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_FP8 = ("F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class Headers:
    """Tensors by the names in the file, dtypes as the format calls them ("BF16"), without scales of fp8 weights."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str]
    plain_fp8: bool = False  # it has fp8 weights without scales
    scaled: AbstractSet[str] = frozenset()  # fp8 weights that are dequantised when read
    mapped: bool = True  # safetensors files, which can be memory-mapped

    @cached_property
    def main_format(self) -> str:
        """The format that most weights have; BF16 if that is fp8."""
        count: Counter[str] = Counter()
        for name, dtype in self.dtypes.items():
            if dtype in NUMBER_BYTES:
                count[dtype] += math.prod(self.shapes[name])
        common = count.most_common(1)
        return "BF16" if not common or common[0][0] in _FP8 else common[0][0]

    def as_read(self, name: str) -> str | None:
        """The format of a tensor whose bytes in the file are what reading it returns; None for any other."""
        return self.dtypes[name] if self.mapped and name not in self.scaled else None


def read_headers(path: str | Path, *, role: str) -> Headers:
    """The headers of a checkpoint of any public layout. `role`: the flag that names it. WeightsError: there is none."""
    path = Path(path).expanduser()
    files = find_files(path, role=role)
    if any(file.suffix.lower() != ".safetensors" for file in files):
        return _through_torch(path, role)
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    metadata: dict[str, str] = {}
    for number, file in enumerate(files):
        try:
            header = read_header(file)
        except (OSError, ValueError) as error:
            raise WeightsError(f"{role}: {file.name} cannot be read: {error}.", DOWNLOAD_HINT) from error
        metadata = header.metadata if number == 0 else metadata
        shapes.update({name: tensor.shape for name, tensor in header.tensors.items()})
        dtypes.update({name: tensor.dtype for name, tensor in header.tensors.items()})
    pairs = _scales(dtypes)
    hidden = {name for name in shapes if name.rpartition(".")[2] in FP8_NOTES} | pairs.keys()
    shown = [name for name in shapes if name not in hidden]
    plain = not pairs and any(dtype in _FP8 for dtype in dtypes.values())
    return Headers(
        {name: shapes[name] for name in shown},
        {name: dtypes[name] for name in shown},
        metadata,
        plain_fp8=plain,
        scaled=frozenset(pairs.values()),
    )


def _scales(dtypes: dict[str, str]) -> dict[str, str]:
    """Scale -> its fp8 weight."""
    found = {}
    for name in dtypes:
        stem, _, last = name.rpartition(".")
        for scale, weight in SCALES:
            if last == scale and dtypes.get(f"{stem}.{weight}") in _FP8:
                found[name] = f"{stem}.{weight}"
    return found


def _through_torch(path: Path, role: str) -> Headers:
    from .weight_files import SAFETENSORS_DTYPES
    from .weights import open_weights

    file = open_weights(path, role=role)
    words = {dtype: word for word, dtype in SAFETENSORS_DTYPES.items()}
    dtypes = {name: words.get(dtype, "?") for name, dtype in file.dtypes.items()}
    return Headers(dict(file.shapes), dtypes, {}, mapped=False)
