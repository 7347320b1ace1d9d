"""Where a checkpoint's bytes are: from what a person typed to files on disk, and from a file to its list of tensors.

Accepts one `.safetensors`, shards (a folder, the index file, or any one shard), a diffusers folder, and PyTorch
files through `torch.load(weights_only=True)` only. Everything that is not a checkpoint (a web page, a git-lfs
pointer, half a download) is recognised by its first bytes and named in the message.
Knows nothing of models. Given up: GGUF, TensorFlow and ONNX files; pickles that hold more than tensors.
"""

from __future__ import annotations

import difflib
import json
import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..contract.errors import WeightsError
from .safetensors_header import Described, read_header

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
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_PIPELINE_FOLDERS = {
    "--dit": "transformer",
    "--dit_high_noise": "transformer",
    "--vae": "vae",
    "--t5": "text_encoder",
    "--text_encoder1": "text_encoder",
    "--text_encoder2": "text_encoder_2",
    "--clip": "image_encoder",
    "--image_encoder": "image_encoder",
}
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.[a-z]+)")
_DOWNLOAD_HINT = "Download the file again and compare its size with the one on the download page."


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies in a safetensors file; `start` and `length` are bytes from the file's beginning."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    length: int


def find_files(path: Path, *, role: str) -> list[Path]:
    """The weight files that `path` stands for, in shard order.

    Raises WeightsError when there is nothing there, when several files could be meant, or when a shard is missing.
    """
    try:
        if path.is_dir():
            return _files_in_folder(path, role=role)
        if not path.exists():
            raise _missing(path, role=role)
    except PermissionError as error:
        raise WeightsError(f"{role}: {path} cannot be read: permission denied.", "Change its permissions.") from error
    if path.name.endswith(".index.json"):
        return _files_in_index(path, role=role)
    if path.suffix.lower() != ".safetensors" and path.suffix.lower() not in PICKLE_SUFFIXES:
        raise WeightsError(
            f"{role}: {path.name} is not a weight file that is known here (suffix {path.suffix or 'none'}).",
            "Give a .safetensors file (or .pt, .pth, .bin), a folder of shards, or a *.safetensors.index.json.",
        )
    if found := _SHARD.fullmatch(path.name):
        count = int(found["count"])
        names = [f"{found['stem']}-{index:05d}-of-{count:05d}{found['suffix']}" for index in range(1, count + 1)]
        return _all_present([path.with_name(name) for name in names], whole=path.name, role=role)
    return [path]


def read_safetensors_header(path: Path, *, role: str) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """The tensors and the metadata of a safetensors file, without reading any weights.

    Raises WeightsError when the file is not safetensors or is shorter than its header says.
    """
    try:
        header = read_header(path)
        entries = {name: _entry(name, told, path, role) for name, told in header.tensors.items()}
    except ValueError as error:
        raise _not_weights(path, role=role) from error
    if header.size < header.end:
        raise WeightsError(
            f"{role}: {path.name} is cut short: it has {header.size:,} bytes of {header.end:,} expected.",
            _DOWNLOAD_HINT,
        )
    return entries, header.metadata


def read_pickle(path: Path, *, role: str) -> dict[str, torch.Tensor]:
    """The tensors of a PyTorch file, memory-mapped where its format allows; `module` and `state_dict` are unwrapped.

    Only plain tensors are unpickled (`weights_only=True`): a file that wants to run code is refused.
    """
    with path.open("rb") as stream:
        zipped = stream.read(4) == b"PK\x03\x04"
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if _looks_like_text(path) or not zipped:
            raise _not_weights(path, role=role) from error
        raise WeightsError(
            f"{role}: {path.name} holds more than tensors, and loading it could run code, so it was refused.",
            "Use the .safetensors version of this model, or re-save its state dict with a tool that you trust.",
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
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


def _entry(name: str, told: Described, path: Path, role: str) -> TensorEntry:
    if told.dtype not in SAFETENSORS_DTYPES:
        raise WeightsError(
            f"{role}: {path.name} stores {name} as {told.dtype}, a number format that is not supported.",
            "Use the bf16, fp16, fp32 or fp8 version of this model.",
        )
    dtype = SAFETENSORS_DTYPES[told.dtype]
    if told.length != dtype.itemsize * math.prod(told.shape):
        raise ValueError(f"{name}: {told.length} bytes for shape {told.shape}")
    return TensorEntry(dtype=dtype, shape=told.shape, start=told.start, length=told.length)


def _files_in_folder(folder: Path, *, role: str) -> list[Path]:
    part = _PIPELINE_FOLDERS.get(role)
    if part and (folder / "model_index.json").exists() and (folder / part).is_dir():
        if part == "transformer" and (folder / "transformer_2").is_dir():
            raise WeightsError(
                f"{role}: {folder} is a pipeline with two transformers, transformer and transformer_2.",
                "Give one of the two folders (Wan2.2: transformer is the high-noise one, transformer_2 the low-noise).",
            )
        return _files_in_folder(folder / part, role=role)
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    plain = [path for path in indexes if path.name.count(".") == 3] or indexes
    if len(plain) == 1:
        return _files_in_index(plain[0], role=role)
    if indexes:
        raise _several(folder, indexes, role=role)
    candidates = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".safetensors")
    if not candidates:
        candidates = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICKLE_SUFFIXES)
    wholes = {(match["stem"], match["count"]) if (match := _SHARD.fullmatch(c.name)) else c for c in candidates}
    if not candidates:
        raise WeightsError(
            f"{role}: the folder {folder} has no weight file in it.",
            "Give the folder that holds the .safetensors files, or one such file.",
        )
    if len(wholes) > 1:
        raise _several(folder, candidates, role=role)
    return find_files(candidates[0], role=role)


def _files_in_index(path: Path, *, role: str) -> list[Path]:
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightsError(f"{role}: {path.name} is not a weight index (no weight_map).", _DOWNLOAD_HINT) from error
    return _all_present([path.parent / name for name in names], whole=path.name, role=role)


def _all_present(paths: list[Path], *, whole: str, role: str) -> list[Path]:
    absent = [path.name for path in paths if not path.exists()]
    if absent:
        raise WeightsError(
            f"{role}: {whole} is one of {len(paths)} parts, and {len(absent)} are missing: {', '.join(absent[:4])}.",
            f"Put all parts into {paths[0].parent}.",
        )
    return paths


def _several(folder: Path, paths: list[Path], *, role: str) -> WeightsError:
    names = ", ".join(path.name for path in paths[:6])
    return WeightsError(
        f"{role}: the folder {folder} has several weight files: {names}{', …' if len(paths) > 6 else ''}.",
        "Give one of them instead of the folder.",
    )


def _missing(path: Path, *, role: str) -> WeightsError:
    folder = path.parent
    if not folder.is_dir():
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        return WeightsError(f"{role}: no such file: {path}", f"Its folder does not exist; {folder} does.")
    names = sorted(child.name for child in folder.iterdir())
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    others = [name for name in names if name.lower().endswith((".safetensors", *PICKLE_SUFFIXES))][:5]
    if near:
        return WeightsError(f"{role}: no such file: {path}", f"Did you mean {' or '.join(near)}?")
    known = f"The weight files in {folder}: {', '.join(others)}." if others else f"{folder} holds no weight files."
    return WeightsError(f"{role}: no such file: {path}", known)


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
    """What a file that cannot be a checkpoint looks like instead."""
    with path.open("rb") as stream:
        start = stream.read(256)
    lowered = start.lstrip().lower()
    what = f"{role}: {path.name}"
    if not start:
        return WeightsError(f"{what} is empty (0 bytes).", _DOWNLOAD_HINT)
    if start.startswith(b"version https://git-lfs"):
        return WeightsError(
            f"{what} is a git-lfs pointer, not the weights ({path.stat().st_size} bytes).",
            "Run `git lfs pull` in its repository, or download the file itself.",
        )
    if lowered.startswith((b"<!doctype", b"<html", b"<?xml")):
        return WeightsError(
            f"{what} is a web page, not weights.",
            "The download link led to a page (a log-in or an error?): download the file itself.",
        )
    if start.startswith(b"PK\x03\x04") and path.suffix.lower() == ".safetensors":
        return WeightsError(
            f"{what} is a PyTorch file with a .safetensors name.", "Rename it to .pt, or download it again."
        )
    if _looks_like_text(path):
        shown = start[:60].decode("utf-8", "replace").splitlines()[0]
        return WeightsError(f"{what} is a text file, not weights; it begins with: {shown}", _DOWNLOAD_HINT)
    kind = "safetensors" if path.suffix.lower() == ".safetensors" else "PyTorch"
    return WeightsError(f"{what} is not a readable {kind} file: its beginning is damaged.", _DOWNLOAD_HINT)
