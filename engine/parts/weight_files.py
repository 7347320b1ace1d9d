"""The tensors in a weight file (weight_paths.py finds it), and where their bytes are.

Accepts `.safetensors`, and PyTorch files through `torch.load(weights_only=True)` only. Everything that is not a
checkpoint (a web page, a git-lfs pointer, half a download) is recognised by its first bytes and named in the message.
Knows nothing of models. Given up: GGUF, TensorFlow and ONNX files; pickles that hold more than tensors.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..contract.errors import WeightsError
from .safetensors_header import Described, read_header
from .weight_paths import DOWNLOAD_HINT

SAFETENSORS_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies in a safetensors file; `start` and `length` are bytes from the file's beginning."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    length: int


def read_safetensors_header(path: Path, *, role: str) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """The tensors and the metadata of a safetensors file, without reading any weights.

    WeightsError: the file is not safetensors, or is shorter than its header says.
    """
    try:
        header = read_header(path)
        entries = {name: _entry(name, tensor, path, role) for name, tensor in header.tensors.items()}
    except ValueError as error:
        raise _not_weights(path, role=role) from error
    if header.size < header.end:
        raise WeightsError(
            f"{role}: {path.name} is cut short: it has {header.size:,} bytes of {header.end:,} expected.",
            DOWNLOAD_HINT,
        )
    return entries, header.metadata


def read_pickle(path: Path, *, role: str) -> dict[str, torch.Tensor]:
    """The tensors of a PyTorch file, memory-mapped if its format allows; `module` and `state_dict` are unwrapped.

    Only plain tensors are unpickled (`weights_only=True`): a file that could run code is refused. WeightsError.
    """
    with path.open("rb") as stream:
        zipped = stream.read(4) == b"PK\x03\x04"
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if _looks_like_text(path) or not zipped:
            raise _not_weights(path, role=role) from error
        raise WeightsError(
            f"{role}: {path.name} holds more than tensors: loading it could run code, so it was refused.",
            "Use the .safetensors version of this model, or re-save its state dict with a tool that you trust.",
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - garbage sends the unpickler anywhere: IndexError, struct.error, ...
        raise _not_weights(path, role=role) from error
    for key in ("module", "state_dict"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    tensors = {}
    if isinstance(found, Mapping):
        tensors = {str(name): value for name, value in found.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise WeightsError(
            f"{role}: {path.name} holds no named tensors.", "Give a file that holds a model's state dict."
        )
    return tensors


def _entry(name: str, tensor: Described, path: Path, role: str) -> TensorEntry:
    if tensor.dtype not in SAFETENSORS_DTYPES:
        raise WeightsError(
            f"{role}: {path.name} stores {name} as {tensor.dtype}, a number format that is not supported.",
            "Use the bf16, fp16, fp32 or fp8 version of this model.",
        )
    dtype = SAFETENSORS_DTYPES[tensor.dtype]
    if tensor.length != dtype.itemsize * math.prod(tensor.shape):
        raise ValueError(f"{name}: {tensor.length} bytes for shape {tensor.shape}")
    return TensorEntry(dtype=dtype, shape=tensor.shape, start=tensor.start, length=tensor.length)


def _looks_like_text(path: Path) -> bool:
    with path.open("rb") as stream:
        start = stream.read(512)
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # not merely a character that the end of the sample cuts in two
            return False
        text = start[: error.start].decode("utf-8")
    return bool(text) and all(letter.isprintable() or letter in "\t\r\n" for letter in text)


def _not_weights(path: Path, *, role: str) -> WeightsError:
    """The error for a file that cannot be a checkpoint: what it looks like instead."""
    with path.open("rb") as stream:
        start = stream.read(256)
    lowered = start.lstrip().lower()
    what = f"{role}: {path.name}"
    if not start:
        return WeightsError(f"{what} is empty (0 bytes).", DOWNLOAD_HINT)
    if start.startswith(b"version https://git-lfs"):
        return WeightsError(
            f"{what} is a git-lfs pointer, not the weights ({path.stat().st_size} bytes).",
            "Run `git lfs pull` in its repository, or download the file itself.",
        )
    if lowered.startswith((b"<!doctype", b"<html", b"<?xml")):
        return WeightsError(
            f"{what} is a web page, not weights.",
            "The download link led to a web page (a login or an error?): download the file itself.",
        )
    if start.startswith(b"PK\x03\x04") and path.suffix.lower() == ".safetensors":
        return WeightsError(
            f"{what} is a PyTorch file with a .safetensors name.", "Rename it to .pt, or download it again."
        )
    if _looks_like_text(path):
        shown = start[:60].decode("utf-8", "replace").splitlines()[0]
        return WeightsError(f"{what} is a text file, not weights; it begins with: {shown}", DOWNLOAD_HINT)
    kind = "safetensors" if path.suffix.lower() == ".safetensors" else "PyTorch"
    return WeightsError(f"{what} is not a readable {kind} file: its beginning is damaged.", DOWNLOAD_HINT)
