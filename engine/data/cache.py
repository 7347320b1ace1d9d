"""Cache files: their names, tensor keys, metadata, and writing them so that a half-written one is never read.

Names, keys and metadata are those of musubi-tuner (format 1.0.1): a cache made there is read here and the reverse.
A tensor is handed over under its plain name ("latents", "varlen_t5") and stored under the format's key
("latents_21x60x104_bfloat16", "varlen_t5_bfloat16"). Knows nothing of datasets' settings (fingerprints.py) and of
what a family stores. Given up: merging into an existing text cache, as musubi-tuner does for two-pass encoders; a
file is always written whole. And where musubi-tuner turns NaN into zeros, writing raises: zeros would be trained on.
"""

from __future__ import annotations

import errno
import json
import os
import re
import struct
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..contract.errors import DataError, DiskError

if TYPE_CHECKING:
    from .clips import Window
    from .items import Source

FORMAT_VERSION = "1.0.1"
SUFFIX = ".safetensors"
SIDECAR_SUFFIX = ".fingerprint.json"
LEFTOVER_AGE_S = 3600.0
_LEFTOVER = re.compile(r"\.cache-(\d+)-[0-9a-f]{8}\.tmp")
_HEADER_LIMIT_BYTES = 100_000_000
_DTYPES = {str(word).removeprefix("torch.") for word in vars(torch).values() if isinstance(word, torch.dtype)}
# Longest first, so that "float8_e4m3fn" is not taken for something shorter.
_DTYPE_SUFFIX = re.compile(rf"_({'|'.join(sorted(_DTYPES, key=len, reverse=True))})$")
_SIZE_SUFFIX = re.compile(r"_\d+x\d+(x\d+)?$")


# ---------------------------------------------------------------------------------------------------- file names


def named_size(window: Window) -> tuple[int, int]:
    """(width, height) in a latent cache's name and metadata: an image's own size, but a video's bucket size."""
    return window.original if window.source.media == "image" else window.bucket


def latent_path(window: Window, architecture: str, *, section: int | None = None) -> Path:
    """Where a window's latents are cached. `architecture` is the short name ("wan", "hv", "fp").

    `section` numbers the training samples of families that make several from one window.
    """
    source = window.source
    width, height = named_size(window)
    place = ""
    if source.media != "image":
        place = f"_{window.start:05d}-{window.count:03d}" + ("" if section is None else f"-{section:04d}")
    name = f"{source.path.stem}{place}_{width:04d}x{height:04d}_{architecture}{SUFFIX}"
    return Path(source.dataset.cache_directory) / name


def text_path(source: Source, architecture: str) -> Path:
    """Where a source's encoded caption is cached: one file for all windows of the source."""
    return Path(source.dataset.cache_directory) / f"{source.path.stem}_{architecture}_te{SUFFIX}"


@dataclass(frozen=True, kw_only=True)
class LatentName:
    """What a latent cache's file name says. `count` is in pixel frames and None for an image."""

    path: Path
    stem: str
    width: int
    height: int
    start: int | None = None
    count: int | None = None
    section: int | None = None

    def text_path(self, architecture: str) -> Path:
        return self.path.with_name(f"{self.stem}_{architecture}_te{SUFFIX}")


def parse_latent_name(path: Path, architecture: str, *, video: bool) -> LatentName | None:
    """Read a latent cache's name from its right end; None when the name does not follow the pattern.

    An image may itself be called `a_00000-081`, so the caller says which of the two patterns its dataset uses.
    """
    place = r"_(?P<start>\d{5,})-(?P<count>\d{3,})(?:-(?P<section>\d{4,}))?" if video else ""
    pattern = rf"(?P<stem>.+){place}_(?P<width>\d{{4,}})x(?P<height>\d{{4,}})_{re.escape(architecture)}\{SUFFIX}"
    found = re.fullmatch(pattern, path.name, flags=re.DOTALL)
    if found is None:
        return None
    parts = found.groupdict()
    numbers = {name: int(value) for name, value in parts.items() if name != "stem" and value is not None}
    return LatentName(path=path, stem=parts["stem"], **numbers)


def latent_files(folder: Path, architecture: str, *, video: bool) -> list[LatentName]:
    """The latent caches of one architecture in a folder, by name. A folder that does not exist holds none."""
    names = (parse_latent_name(path, architecture, video=video) for path in _files(folder))
    return [name for name in names if name is not None]


def text_files(folder: Path, architecture: str) -> list[Path]:
    """The text caches of one architecture in a folder, by name."""
    return [path for path in _files(folder) if path.name.endswith(f"_{architecture}_te{SUFFIX}")]


def sidecar_path(path: Path) -> Path:
    """The fingerprint file that belongs to a cache file."""
    return path.with_name(path.name.removesuffix(SUFFIX) + SIDECAR_SUFFIX)


def _files(folder: Path) -> list[Path]:
    # Listed, not globbed: folder names may hold [ ] and *.
    try:
        return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_file())
    except FileNotFoundError:
        return []
    except OSError as error:
        message = f"The cache folder {folder} cannot be read: {error.strerror}."
        raise DataError(message, "Check its permissions.") from error


# --------------------------------------------------------------------------------------------------- tensor keys


def stored_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Plain name -> key in the file.

    `latents…` get the target's own {F}x{h}x{w} (also clean latents of another length, as the format has it) and the
    dtype; `…_mask` stays as it is; all else gets the dtype. A name that ends in a dtype word is a key already.
    """
    size = ""
    if "latents" in tensors:
        _, latent_frames, height, width = tensors["latents"].shape
        size = f"_{latent_frames}x{height}x{width}"
    keys = {}
    for name, tensor in tensors.items():
        word = str(tensor.dtype).removeprefix("torch.")
        if name.endswith("_mask") or _DTYPE_SUFFIX.search(name):
            keys[name] = name
        elif name == "latents" or name.startswith("latents_"):
            keys[name] = f"{name}{size}_{word}"
        else:
            keys[name] = f"{name}_{word}"
    return keys


def plain_name(key: str) -> str:
    """Key in the file -> plain name: without dtype, and for `latents…` without size. `varlen_` stays."""
    if key.endswith("_mask"):
        return key
    name = _DTYPE_SUFFIX.sub("", key)
    return _SIZE_SUFFIX.sub("", name) if name.startswith("latents_") else name


# ------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Header:
    """What a cache file says of itself: key -> shape, and the metadata."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str] = field(default_factory=dict)


def read_header(path: Path) -> Header:
    """Read and check a cache's header without its tensors. DataError when the file is cut short or not a cache."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
            if not 0 < length <= min(size - 8, _HEADER_LIMIT_BYTES):
                raise ValueError("its header is cut short")
            header: dict[str, Any] = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        shapes = {key: tuple(entry["shape"]) for key, entry in header.items()}
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except OSError as error:
        raise DataError(f"The cache file {path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, str(error)) from error
    if end != size:
        raise _damaged(path, f"it has {size} bytes where its header says {end}")
    return Header(shapes, metadata)


def read(path: Path) -> dict[str, Tensor]:
    """Every tensor of a cache under its key in the file, on the CPU, one opening. DataError when it is damaged."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}
    except (OSError, SafetensorError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"The cache file {path} is damaged: {reason}.", "Cache again, or delete this file.")


# ------------------------------------------------------------------------------------------------------- writing


def write_latents(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    architecture: str,
    width: int,
    height: int,
    frame_count: int | None,
) -> None:
    """Write one clip's latents (no batch dimension; "latents" is CTHW) whole or not at all.

    `architecture` is the full name ("wan", "hunyuan_video"); `width`, `height` see named_size; `frame_count` pixel
    frames, None for an image. DataError when a tensor holds NaN or infinity, DiskError when it cannot be written.
    """
    metadata = {
        "architecture": architecture,
        "width": f"{width}",
        "height": f"{height}",
        "format_version": FORMAT_VERSION,
    }
    if frame_count is not None:
        metadata["frame_count"] = f"{frame_count}"
    _write_tensors(path, tensors, metadata)


def write_text(path: Path, tensors: Mapping[str, Tensor], *, architecture: str, caption: str) -> None:
    """Write one encoded caption whole or not at all. Arguments and errors as in write_latents."""
    metadata = {"architecture": architecture, "caption1": caption, "format_version": FORMAT_VERSION}
    _write_tensors(path, tensors, metadata)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    keys = stored_names(tensors)
    stored = {keys[name]: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for key, tensor in stored.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise DataError(
                f"{key} holds NaN or infinity, so {path.name} was not written.",
                "The source may be damaged, or the model's precision too low: try a wider dtype (float32).",
            )
    write_whole(path, save(stored, metadata))


def write_whole(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Put a file in place in one step: readers see the old file or the new one, never a part. DiskError.

    `durable` holds through a power cut too, and costs a wait for the disk.
    """
    temporary = path.with_name(f".cache-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        _unlink_if_there(temporary)


def disk_error(path: Path, error: OSError) -> DiskError:
    """What to tell the person about a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskError(
            f"The disk is full: {path} could not be written.",
            "Free some space, or set cache_directory in the dataset file to another disk; what is cached is kept.",
        )
    message = f"{path} could not be written: {error.strerror or error}."
    return DiskError(message, "Check the folder and its permissions.")


# ------------------------------------------------------------------------------------------------------ cleaning


def clean_leftovers(folder: Path) -> int:
    """Remove temporary files of killed writers. Those of a running process stay (unless over an hour old)."""
    removed = 0
    for path in _files(folder):
        found = _LEFTOVER.fullmatch(path.name)
        if found and _is_abandoned(path, int(found[1])):
            removed += _unlink_if_there(path)
    return removed


def _is_abandoned(path: Path, pid: int) -> bool:
    try:
        old = time.time() - path.stat().st_mtime > LEFTOVER_AGE_S
    except FileNotFoundError:
        return False
    if old or os.name != "posix" or pid == os.getpid():  # elsewhere than on POSIX, signal 0 is not a harmless question
        return old
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def orphans(folder: Path, *, architecture: str, kind: str, video: bool, keep: Collection[Path]) -> Iterator[Path]:
    """Caches that nobody owns: files of this architecture's pattern ("latents" or "text") that are not in `keep`.

    Only files that are surely caches: a LoRA called my_wan.safetensors in the same folder does not match the
    pattern, and a text cache, whose pattern is loose, must also say so in its metadata.
    """
    kept = {os.path.normcase(os.path.abspath(path)) for path in keep}
    if kind == "latents":
        found = [name.path for name in latent_files(folder, architecture, video=video)]
    else:
        found = [path for path in text_files(folder, architecture) if _is_text_cache(path)]
    for path in found:
        if os.path.normcase(os.path.abspath(path)) not in kept:
            yield path


def remove(path: Path) -> None:
    """Delete a cache and its sidecar (the sidecar last: alone it means nothing). DiskError."""
    try:
        _unlink_if_there(path)
        _unlink_if_there(sidecar_path(path))
    except OSError as error:
        raise DiskError(f"{path} could not be removed: {error.strerror}.", "Check the folder's permissions.") from error


def _is_text_cache(path: Path) -> bool:
    try:
        return "caption1" in read_header(path).metadata
    except DataError:
        return False  # not surely ours: left alone


def _unlink_if_there(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True
