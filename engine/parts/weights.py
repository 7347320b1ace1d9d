"""Read checkpoints tensor by tensor, put them into modules, write them safely.

`open_weights` reads headers only; a tensor is read when it is asked for, into memory of its own (no mapping that
a replaced file could break). `load_into` is strict: every parameter filled, nothing left over, all shapes checked
before the first byte of weights is read. Scaled fp8 weights (ComfyUI's and musubi-tuner's kinds) are dequantised on
reading unless asked otherwise.
Knows nothing of families: the caller's `rename` translates names.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import torch
from torch import nn

from ..contract.errors import WeightsError
from ..contract.files import whole_file
from ..contract.wording import first_few
from ..ops.fp8 import dequantize
from .reading import in_order, read_bytes
from .reading_told import begun
from .weight_files import (
    SAFETENSORS_DTYPES,
    TensorEntry,
    read_pickle,
    read_safetensors_header,
)
from .weight_headers import FP8_NOTES, SCALES
from .weight_paths import find_files

Stored = tuple[Path, TensorEntry]
FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
_SAMPLES, _SAMPLE_BYTES = 64, 4096


class WeightFile:
    """A checkpoint of one or more files, read one tensor at a time.

    `shapes` and `dtypes` are by the names in the file, in file order; `metadata` is the safetensors metadata of the
    first file. `dtypes` says what is stored: fp8 for a scaled fp8 weight although `read` returns it dequantised.
    """

    def __init__(self, path: Path, files: list[Path], *, role: str, dequantize: bool = True):
        self.path, self.role = path, role
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.metadata: dict[str, str] = {}
        self._files = files
        self._entries: dict[str, tuple[Path, TensorEntry]] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        for number, file in enumerate(files):
            self._add(file, first=number == 0)
        self._scales = _pair_scales(self.dtypes) if dequantize else {}
        if dequantize:
            scales = set(self._scales.values())
            self.shapes = {name: s for name, s in self.shapes.items() if name not in scales and not _is_note(name)}
            self.dtypes = {name: self.dtypes[name] for name in self.shapes}

    def read(self, name: str, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> torch.Tensor:
        """One tensor, on `device`, in memory of its own. dtype None keeps the file's (scaled fp8 becomes bfloat16).

        Integer and bool tensors keep their type. Raises KeyError for a name that is not in `shapes`.
        """
        tensor = self._raw(name, device)
        if name in self._scales:
            tensor = dequantize(tensor, self._raw(self._scales[name], device)).to(dtype or torch.bfloat16)
        return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor

    def stored(self, name: str) -> Stored | None:
        """Where a safetensors file has exactly the numbers that `read` returns; None if it has not."""
        return None if name in self._scales else self._entries.get(name)

    def identity(self) -> str:
        """16 hex digits that depend on the content, not on the path or the date; reads up to 256 KiB per file."""
        digest = hashlib.sha256(repr([(name, str(self.dtypes[name]), s) for name, s in self.shapes.items()]).encode())
        for file in self._files:
            size = file.stat().st_size
            digest.update(str(size).encode())
            with file.open("rb") as stream:
                for index in range(_SAMPLES):
                    stream.seek(max(0, (size - _SAMPLE_BYTES) * index // (_SAMPLES - 1)))
                    digest.update(stream.read(_SAMPLE_BYTES))
        return digest.hexdigest()[:16]

    def _add(self, file: Path, *, first: bool) -> None:
        try:
            if file.suffix.lower() == ".safetensors":
                entries, metadata = read_safetensors_header(file, role=self.role)
                self.metadata = metadata if first else self.metadata
                self._entries.update({name: (file, entry) for name, entry in entries.items()})
                self.shapes.update({name: entry.shape for name, entry in entries.items()})
                self.dtypes.update({name: entry.dtype for name, entry in entries.items()})
            else:
                tensors = read_pickle(file, role=self.role)
                self._tensors.update(tensors)
                self.shapes.update({name: tuple(tensor.shape) for name, tensor in tensors.items()})
                self.dtypes.update({name: tensor.dtype for name, tensor in tensors.items()})
        except PermissionError as error:
            raise WeightsError(
                f"{self.role}: {file} cannot be read: permission denied.", "Change its permissions."
            ) from error

    def _raw(self, name: str, device: torch.device | str) -> torch.Tensor:
        if name in self._tensors:
            return self._tensors[name].detach().clone().to(device)
        file, entry = self._entries[name]
        found = read_bytes(file, entry.start, entry.length, device=torch.device(device))
        if found is None:
            raise WeightsError(
                f"{self.role}: {file.name} ended while {name} was being read.",
                "Is the file being changed? Start again once it is complete.",
            )
        return found.view(entry.dtype).view(entry.shape)


def open_weights(path: str | Path, *, role: str, dequantize: bool = True) -> WeightFile:
    """Open a checkpoint: a file, shards, a folder (see `weight_paths`). `role` is the flag, e.g. "--dit".

    `dequantize` False shows scaled fp8 files as they are stored, scales and markers included.
    Raises WeightsError if there is no readable checkpoint.
    """
    if not str(path).strip():
        raise WeightsError(f"{role}: no file was given.", f"Name the weights with {role} PATH.")
    path = Path(path).expanduser()
    return WeightFile(path, find_files(path, role=role), role=role, dequantize=dequantize)


def main_dtype(file: WeightFile) -> torch.dtype:
    """The floating-point dtype that most weights of the file have; bfloat16 if that is fp8."""
    count: Counter[torch.dtype] = Counter()
    for name, shape in file.shapes.items():
        if file.dtypes[name].is_floating_point:
            count[file.dtypes[name]] += torch.Size(shape).numel()
    dtype = count.most_common(1)[0][0]
    return torch.bfloat16 if dtype in FP8_DTYPES else dtype


def metadata_number(file: WeightFile, key: str, *, default: int) -> int:
    """A number, 1 or more, from the file's metadata, for what shapes do not show. WeightsError for anything else."""
    text = file.metadata.get(key, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise WeightsError(f"{file.role}: the metadata key {key} of {file.path.name} is {text!r}, not a number.")
    return int(text)


@runtime_checkable
class Choosing(Protocol):
    """A transform that need not see every tensor: one that `instead` returns is used, and nothing is read for it.

    `own`: the module's tensor, of the wanted shape and dtype. `stored`: where a file has the tensor's numbers, if any.
    None: read it.
    """

    def instead(self, name: str, own: torch.Tensor, stored: Stored | None) -> torch.Tensor | None: ...


@runtime_checkable
class Keeping(Protocol):
    """A transform that has a place of its own for some tensors: `keep` returns the tensor there, or None to decline."""

    def keep(self, name: str, tensor: torch.Tensor) -> torch.Tensor | None: ...


class Unread:
    """A transform with which nothing is read: all tensors stay as the module was built, e.g. on "meta"."""

    def __call__(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def instead(self, name: str, own: torch.Tensor, stored: Stored | None) -> torch.Tensor:
        return own


class WorkedOn:
    """A transform that runs on a GPU even if the module is to be in main memory.

    Tensors are read onto `device` and transformed there, and only the results are moved to the module's device.
    """

    def __init__(self, transform: Callable[[str, torch.Tensor], torch.Tensor], device: torch.device) -> None:
        self.transform, self.device = transform, device

    def __call__(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        return self.transform(name, tensor)


def load_into(
    module: nn.Module,
    file: WeightFile,
    *,
    rename: Callable[[str], str | None],
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    transform: Callable[[str, torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """Fill every parameter and persistent buffer of `module` (which may be on "meta") from `file`, strictly.

    `rename` maps a name in the file to the module's; None drops it. Two names that map to one (tied tables stored
    twice) must agree in shape; the first is used. `transform(name, tensor)` gets the module's name and the tensor on
    `device` as stored (scaled fp8 dequantised); the result is then cast to `dtype`, unless the transform changed the
    dtype itself. It may choose what is read (`Choosing`) and where (`WorkedOn`), and where it stays (`Keeping`).
    `dtype` None keeps the file's.
    WeightsError lists the first missing, unexpected and misshapen names.
    """
    slots = _slots(module)
    sources = _match(slots, file, rename)
    if isinstance(transform, Choosing):
        for ours in list(sources):
            given = transform.instead(ours, _own(slots[ours]), file.stored(sources[ours]))
            if given is not None:
                _assign(slots[ours], given)
                del sources[ours]
    wanted = {ours: _own(slots[ours]).nbytes for ours in sources}
    advance = begun(sum(wanted.values()))
    device = torch.device(device)
    place = transform.device if isinstance(transform, WorkedOn) else device
    for ours, tensor in in_order(wanted.items(), lambda name: file.read(sources[name], device=place), device=place):
        changed = tensor if transform is None else transform(ours, tensor)
        if dtype is not None and changed.dtype == tensor.dtype and changed.is_floating_point():
            changed = changed.to(dtype)
        kept = transform.keep(ours, changed) if isinstance(transform, Keeping) else None
        _assign(slots[ours], kept if kept is not None else changed if place == device else changed.to(device))
        advance(wanted[ours])
    for part in module.modules():
        for name in part._non_persistent_buffers_set:
            buffer = part._buffers[name]
            if buffer is not None and not buffer.is_meta:
                part._buffers[name] = buffer.to(device)


def write_weights(
    path: str | Path, tensors: Mapping[str, torch.Tensor], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file whole or not at all, moving tensors to the CPU one at a time.

    DiskError: the disk is full or not writable.
    """
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    stream_weights(path, layout, tensors.__getitem__, metadata=metadata)


Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


def stream_weights(
    path: str | Path,
    layout: Layout,
    read: Callable[[str], torch.Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """The same for tensors that need not be in memory together: `read(name)` is called once for each, in file order.

    `layout`: dtype and shape of each, in advance. Within one size of numbers, names are read in alphabetical order.
    """
    need = sum(dtype.itemsize * math.prod(shape) for dtype, shape in layout.values())
    advice = f"The file takes {need / 2**20:.0f} MiB: free some space, or choose another folder."
    with whole_file(Path(path), advice=advice) as temporary, temporary.open("wb") as stream:
        order = _write_header(stream, layout, metadata or {})
        for name in order:
            tensor = read(name).detach().cpu().contiguous().reshape(-1)
            if (tensor.dtype, tensor.numel()) != (layout[name][0], math.prod(layout[name][1])):
                raise ValueError(f"{name} is {tensor.dtype} of {tensor.numel()} numbers, announced were {layout[name]}")
            if tensor.numel():
                stream.write(memoryview(tensor.view(torch.uint8).numpy()))


def _write_header(stream: BinaryIO, layout: Layout, metadata: Mapping[str, str]) -> list[str]:
    """Write the header; returns the names in the order in which their weights must follow."""
    names = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
    order = sorted(layout, key=lambda name: (-layout[name][0].itemsize, name))  # keeps every tensor aligned
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in order:
        dtype, shape = layout[name]
        length = dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [offset, offset + length]}
        offset += length
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(struct.pack("<Q", len(text)) + text)
    return order


def _is_note(name: str) -> bool:
    """Whether a tensor of this name describes how fp8 was made and is not a weight."""
    return name.rpartition(".")[2] in FP8_NOTES


def _pair_scales(dtypes: Mapping[str, torch.dtype]) -> dict[str, str]:
    """fp8 weight name -> the name of its scale."""
    pairs = {}
    for name in dtypes:
        stem, _, last = name.rpartition(".")
        for scale, weight in SCALES:
            target = f"{stem}.{weight}"
            if last == scale and dtypes.get(target) in FP8_DTYPES:
                pairs[target] = name
    return pairs


Slot = list[tuple[nn.Module, str]]


def _slots(module: nn.Module) -> dict[str, Slot]:
    """Each parameter and persistent buffer by its first name, with every place that has it (tied weights)."""
    slots: dict[str, Slot] = {}
    first: dict[int, str] = {}
    for prefix, part in module.named_modules():
        held = {
            **part._parameters,
            **{n: b for n, b in part._buffers.items() if n not in part._non_persistent_buffers_set},
        }
        for name, tensor in held.items():
            if tensor is not None:
                full = first.setdefault(id(tensor), f"{prefix}.{name}" if prefix else name)
                slots.setdefault(full, []).append((part, name))
    return slots


def _match(slots: dict[str, Slot], file: WeightFile, rename: Callable[[str], str | None]) -> dict[str, str]:
    """Our name -> the file's, in file order; WeightsError unless the two sides agree in names and shapes."""
    sources: dict[str, str] = {}
    unexpected, misshapen = [], []
    for theirs, shape in file.shapes.items():
        ours = rename(theirs)
        if ours is None:
            continue
        if ours not in slots:
            unexpected.append(theirs)
            continue
        wanted = tuple(_own(slots[ours]).shape)
        if shape != wanted:
            misshapen.append(f"{theirs} {list(shape)} instead of {list(wanted)}")
        sources.setdefault(ours, theirs)
    missing = [name for name in slots if name not in sources]
    problems = (("missing", missing), ("not expected", unexpected), ("of another shape", misshapen))
    if any(names for _, names in problems):
        listed = "; ".join(f"{len(names)} {what} ({first_few(names)})" for what, names in problems if names)
        raise WeightsError(
            f"{file.role}: {file.path.name} does not hold the tensors of this model: {listed}.",
            f"Is this the right file for {file.role}, and are all its parts there?",
        )
    return sources


def _own(slot: Slot) -> torch.Tensor:
    part, name = slot[0]
    return getattr(part, name)


def _assign(slot: Slot, tensor: torch.Tensor) -> None:
    part, name = slot[0]
    if name in part._parameters:
        old = part._parameters[name]
        tensor = nn.Parameter(tensor, requires_grad=old.requires_grad and tensor.is_floating_point())
    for part, name in slot:
        (part._parameters if name in part._parameters else part._buffers)[name] = tensor
