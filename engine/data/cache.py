"""Cache files: their names, tensor keys, metadata, and writing them so that a half-written one is never read.

Names, keys and metadata are those of musubi-tuner (format 1.0.1): a cache made there is read here and the reverse.
A tensor is handed over under its plain name ("latents", "varlen_t5") and stored under the format's key
("latents_21x60x104_bfloat16", "varlen_t5_bfloat16"). Knows nothing of datasets' settings (fingerprints.py) and of
what a family stores. Given up: merging into an existing text cache, as musubi-tuner does for two-pass encoders; a
file is always written whole. And where musubi-tuner turns NaN into zeros, writing raises: zeros would be trained on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..contract.errors import DataError, DiskError
from ..contract.files import write_bytes
from ..parts import safetensors_header

if TYPE_CHECKING:
    from .clips import Window
    from .items import Source

FORMAT_VERSION = "1.0.1"
SUFFIX = ".safetensors"
SIDECAR_SUFFIX = ".fingerprint.json"
ADVICE = "Free some space, or set cache_directory in the dataset file to another disk; what is cached is kept."
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
        header = safetensors_header.read_header(path)
    except OSError as error:
        raise DataError(f"The cache file {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if header.end != header.size:
        raise _damaged(path, f"it has {header.size} bytes where its header says {header.end}")
    return Header({key: tensor.shape for key, tensor in header.tensors.items()}, header.metadata)


def read(path: Path, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Every tensor of a cache under its key in the file, on the CPU, one opening. DataError when it is damaged.

    `names`: only the tensors of these plain names that the file has, and none of the others' bytes.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys() if names is None or plain_name(key) in names}
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
    write_bytes(path, safetensors_header.in_order(save(stored, metadata)), advice=ADVICE)


# ------------------------------------------------------------------------------------------------------ cleaning


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
        path.unlink(missing_ok=True)
        sidecar_path(path).unlink(missing_ok=True)
    except OSError as error:
        raise DiskError(f"{path} could not be removed: {error.strerror}.", "Check the folder's permissions.") from error


def _is_text_cache(path: Path) -> bool:
    try:
        return "caption1" in read_header(path).metadata
    except DataError:
        return False  # not surely ours: left alone
