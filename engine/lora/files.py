"""LoRA files: reading every public naming and kind, and writing files with the hashes that LoRA browsers index by.

names.py and weights.py know the names and kinds; this module assembles them for the modules of one model, so that the
result does not depend on the tool that wrote the file. Layers that a file keeps apart are joined, layers that it keeps
together are cut. Knows no family. Given up: OFT, BOFT, GLoRA, (IA)^3, AdaLoRA.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..contract.errors import WeightsError
from ..contract.files import write_bytes
from ..contract.missing import looked_for, missing_file_hint
from ..parts.weight_files import read_pickle
from .names import UNREADABLE, LoraTarget, Place, split
from .peft import find_weights, peft_settings
from .pieces import cut, joined
from .weights import PARTS, AdapterWeights, LoraWeights, understand

ADVICE = "Free some space, or choose another folder."
AlphaOf = Callable[[str, int], "float | None"]
_DIFFERENCES = {"diff": "weight", "diff_b": "bias", "diff_m": "modulation"}
_STABILISED, _HAS_LENGTHS = "use_rslora_flag", "use_dora_flag"
"""What Blissful Tuner says of a whole file, as tensors: that alpha is divided by the root of the rank, not by the rank
(rsLoRA, arXiv 2312.03732), and that it is a DoRA, as its other tensors show."""
_BIAS = "lora_up.bias"
"""PEFT's bias of the up half. Times the scale, as with the product of the halves, it is the change of the bias."""


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file in terms of one model's modules.

    `differences`: full changes of single parameters ("path.weight", "path.bias"), which some files also hold.
    `unmatched`: keys that belong to no module of the model. `dtype`: the number format of the first weight.
    """

    path: Path
    modules: dict[str, AdapterWeights]
    differences: dict[str, Tensor] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32


def read_lora(path: Path | str, target: LoraTarget, *, role: str = "--lora_weight") -> LoraFile:
    """Read a LoRA for the model that has the target's modules. `role`: the flag that named the file.

    `path` may be a folder that PEFT wrote. WeightsError: unreadable, not a LoRA, for another family (no name fits),
    parts missing, or a layer that has to be cut or joined has another size.
    """
    path = find_weights(Path(path), role=role)
    tensors, metadata = read_tensors(path, role=role)
    settings = peft_settings(path, metadata)
    reader = _Reader(path, target, rank_stabilised=bool(tensors.get(_STABILISED, False)))
    about_modules = [key for key in tensors if key not in (_STABILISED, _HAS_LENGTHS)]
    for stem, keys in _grouped(about_modules, path).items():
        parts = {part: tensors[key] for part, key in keys.items()}
        place = target.find(stem)
        left = parts.keys() if place is None else reader.take(stem, parts, place, settings.alpha_of)
        reader.unmatched += [key for part, key in keys.items() if part in left]
    if not reader.found:
        first = next(iter(tensors))
        raise WeightsError(
            f"{role} {path.name}: none of its {len(tensors)} tensors belongs to this model (first: {first}).",
            "It is a LoRA for another model family, or not a LoRA at all.",
        )
    dtype = next((value.dtype for key, value in tensors.items() if not key.endswith("alpha")), torch.float32)
    return LoraFile(path, reader.modules(), reader.differences, tuple(reader.unmatched), metadata, dtype)


def _grouped(keys: Iterable[str], path: Path) -> dict[str, dict[str, str]]:
    """The file's name for a module -> part -> key. A key of no known form is a group by itself, with part ""."""
    groups: dict[str, dict[str, str]] = {}
    for key in keys:
        found = split(key)
        if found is None and (kind := next((kind for mark, kind in UNREADABLE.items() if mark in key), None)):
            raise WeightsError(f"{path.name} is a {kind} file ({key}), which this engine does not read.")
        stem, part = found or (key, "")
        groups.setdefault(stem, {})[part] = key
    return groups


class _Reader:
    """Assembles the groups of a file's tensors into adapters for a target's modules."""

    def __init__(self, path: Path, target: LoraTarget, *, rank_stabilised: bool) -> None:
        self._path, self._target, self._rank_stabilised = path, target, rank_stabilised
        self.differences: dict[str, Tensor] = {}
        self.unmatched: list[str] = []
        self._whole: dict[str, AdapterWeights] = {}
        self._partial: dict[str, dict[int, tuple[AdapterWeights, Place]]] = {}

    @property
    def found(self) -> bool:
        return bool(self._whole or self._partial or self.differences)

    def take(self, stem: str, parts: Mapping[str, Tensor], place: Place, alpha_of: AlphaOf) -> Collection[str]:
        """Take in one module of the file. Returns the parts left over: unknown, for a parameter that the model lacks,
        or already present under another name."""
        full = [part for part in _DIFFERENCES if part in parts]
        left = {part for part in full if not self._differ(place, _DIFFERENCES[part], parts[part])}
        if not any(part in PARTS for part in parts):
            return left | parts.keys() & {_BIAS} if full else parts.keys()
        if any(path in self._whole for path in place.modules) or place.part in self._partial.get(place.modules[0], {}):
            return left | parts.keys() - full
        alpha = float(parts["alpha"]) if "alpha" in parts else None
        where = f"{self._path.name}: {stem}"
        weights = understand(parts, alpha=alpha, where=where)
        if alpha is None and (alpha := alpha_of(stem, weights.rank)):
            weights = understand(parts, alpha=alpha, where=where)
        elif alpha and self._rank_stabilised and isinstance(weights, LoraWeights):
            weights = understand(parts, alpha=alpha * weights.rank**0.5, where=where)
        if _BIAS in parts:
            change = parts[_BIAS].float() * weights.scale + parts.get("diff_b", torch.zeros(())).float()
            left |= set() if self._differ(place, "bias", change) else {_BIAS}
        if place.of > 1:
            self._partial.setdefault(place.modules[0], {})[place.part] = (weights, place)
        elif len(place.modules) == 1:
            self._whole[place.modules[0]] = weights
        else:
            for path, (start, stop) in self._cuts(place, weights.out_features).items():
                self._whole[path] = cut(weights, start, stop)
        return left

    def modules(self) -> dict[str, AdapterWeights]:
        """All adapters; layers that the file has in parts are joined."""
        return self._whole | {path: self._join(path, found) for path, found in self._partial.items()}

    def _join(self, path: str, found: Mapping[int, tuple[AdapterWeights, Place]]) -> AdapterWeights:
        total, row = self._rows(path), 0
        parts: list[tuple[AdapterWeights | None, int]] = []
        for part, (weights, place) in sorted(found.items()):
            start = self._start(path, part, place.of, weights.out_features)
            parts += [(None, start - row)] if start > row else []
            parts.append((weights, weights.out_features))
            row = start + weights.out_features
        parts += [(None, total - row)] if total > row else []
        if sum(rows for _, rows in parts) != total:
            raise self._misfit(path, row)
        return joined(parts)

    def _start(self, path: str, part: int, of: int, rows: int) -> int:
        """First row of a part. All parts have the same size but the last, which takes the rest."""
        return self._rows(path) - rows if part == of - 1 else part * rows

    def _cuts(self, place: Place, rows: int) -> dict[str, tuple[int, int]]:
        """Module -> its first row and one past its last, in a layer of `rows` rows that holds several modules."""
        found, row = {}, 0
        for path in place.modules:
            found[path] = (row, row + self._rows(path))
            row += self._rows(path)
        if row != rows:
            raise self._misfit(", ".join(place.modules), rows)
        return found

    def _rows(self, path: str) -> int:
        return self._target.shapes[path][0]

    def _misfit(self, path: str, rows: int) -> WeightsError:
        return WeightsError(
            f"{self._path.name}: {rows} output features are meant for {path}, which has a different number.",
            "This LoRA was made for another size of the model: use it with that one.",
        )

    def _differ(self, place: Place, parameter: str, difference: Tensor) -> bool:
        """Record a full change of a weight, a bias, or what a file calls the modulation of a block. False: it is for a
        bias that the model does not have."""
        path = place.modules[0]
        if parameter == "bias" and not self._target.biasless.isdisjoint(place.modules):
            return False
        if path in self._target.bare:
            self.differences[path] = difference
        elif len(place.modules) > 1:
            for one, (start, stop) in self._cuts(place, difference.shape[0]).items():
                self.differences[f"{one}.{parameter}"] = difference[start:stop]
        elif place.of > 1:
            name, rows = f"{path}.{parameter}", difference.shape[0]
            whole = self.differences.setdefault(name, difference.new_zeros(self._rows(path), *difference.shape[1:]))
            start = self._start(path, place.part, place.of, rows)
            whole[start : start + rows] = difference
        else:
            self.differences[f"{path}.{parameter}"] = difference
        return True


def read_tensors(path: Path, *, role: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a LoRA file under its own names, and its metadata. WeightsError: it cannot be read."""
    if not path.is_file():
        raise WeightsError(
            f"{role} {path}: there is no such file.", missing_file_hint(path) or f"Correct the path.{looked_for(path)}"
        )
    if path.suffix != ".safetensors":
        return read_pickle(path, role=role), {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a method, not a dict)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{role} {path}: not a readable safetensors file ({error}).", "Fetch it again.") from error
    if not tensors:
        raise WeightsError(f"{role} {path}: the file contains no tensors.")
    return tensors, metadata


def write_lora(
    path: Path | str,
    tensors: Mapping[str, Tensor],
    *,
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = None,
) -> None:
    """Write a LoRA file, whole or not at all, with the two hashes that LoRA browsers index by.

    `dtype` None keeps each tensor's. DiskError: the disk is full or cannot be written to.
    """
    path = Path(path)
    ready = {name: _stored(value, dtype) for name, value in tensors.items()}
    model_hash, legacy_hash = hashes(ready, metadata)
    metadata = {**metadata, "sshs_model_hash": model_hash, "sshs_legacy_hash": legacy_hash}
    write_bytes(path, safetensors.torch.save(ready, metadata), advice=ADVICE)


def _stored(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    if not value.is_floating_point():
        dtype = None
    return value.detach().to("cpu", dtype).contiguous().clone()


def hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[str, str]:
    """(sshs_model_hash, sshs_legacy_hash): SHA-256 of the tensor data, and the old short hash of 64 KiB of the file.

    Both are computed as if the file had only the `ss_` metadata, as sd-scripts defines them.
    """
    kept = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    content = memoryview(safetensors.torch.save(dict(tensors), kept))
    header = int.from_bytes(content[:8], "little")
    model_hash = hashlib.sha256(content[8 + header :]).hexdigest()
    legacy_hash = hashlib.sha256(content[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]
    return model_hash, legacy_hash
