"""Fingerprints: a small JSON file beside each cache that says what the cache was made from.

musubi-tuner keeps a cache when the caption, the resolution or the model has changed, and trains on leftovers of other
settings. Here each cache `x.safetensors` has a sidecar `x.fingerprint.json`; others ignore it. It answers two
questions without decoding anything: is this cache what would be made now (`state`), and does it belong to the dataset
as it is configured now (`in_plan`)?

    fresh     made from the same source, window, settings and model: kept
    stale     made from something else, or its sidecar is unreadable: made again
    foreign   no sidecar, or one that belongs to an earlier file: made by musubi-tuner. Made again, unless the person
              says --skip_existing; training takes it as it is
    missing   not there, or cut short: made

The sidecar is tied to its cache by a digest, so a cache that another tool overwrites becomes foreign at once. Given
up: hashing whole sources; size, first and last MiB stand for the content.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..contract.errors import DataError
from ..contract.files import write_text
from .cache import ADVICE, read_header, sidecar_path
from .config import Dataset

VERSION = 1
SAMPLE_BYTES = 1 << 20
_TAIL_BYTES = 4096
State = Literal["fresh", "stale", "foreign", "missing"]


# ----------------------------------------------------------------------------------------------- what is compared


@dataclass(frozen=True, kw_only=True)
class Content:
    """A source file (or folder of frames) as it was. `sample` decides; size and time only spare reading it again."""

    name: str
    size: int
    mtime_ns: int
    sample: str


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Everything that a cache depends on.

    `settings` are those that shape the tensors (bucket, frame rates, the family's own); `plan` holds the dataset's
    settings that decide which windows exist at all: it does not make a cache stale, it tells leftovers apart.
    """

    source: tuple[Content, ...] = ()  # the source itself, then its controls; empty for a caption
    window: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""
    caption: str = ""  # sha256
    plan: Mapping[str, Any] = field(default_factory=dict)
    in_use: bool = True  # False: kept on disk on request, but not of the present dataset

    def same_tensors(self, other: Fingerprint) -> bool:
        """Whether a cache made from `other` would hold the same."""
        return self._shaping() == other._shaping()

    def _shaping(self) -> tuple[Any, ...]:
        samples = [content.sample for content in self.source]
        return samples, plain(self.window), plain(self.settings), self.model, self.caption


def plain(value: Any) -> Any:
    """The value as JSON gives it back: tuples become lists, keys strings, paths text."""
    return json.loads(json.dumps(value, sort_keys=True, default=str))


def caption_digest(caption: str) -> str:
    return hashlib.sha256(caption.encode()).hexdigest()


def plan_settings(dataset: Dataset) -> dict[str, Any]:
    """The settings of a dataset that decide which caches it has; those without effect are left out."""
    settings: dict[str, Any] = {
        "resolution": dataset.resolution,
        "enable_bucket": dataset.enable_bucket,
        "bucket_no_upscale": dataset.enable_bucket and dataset.bucket_no_upscale,
        "control_resolution": dataset.control_resolution,
        "no_resize_control": dataset.no_resize_control,
        "fp_latent_window_size": dataset.fp_latent_window_size,
        "fp_1f_clean_indices": dataset.fp_1f_clean_indices,
        "fp_1f_target_index": dataset.fp_1f_target_index,
        "fp_1f_no_post": dataset.fp_1f_no_post,
    }
    if dataset.kind == "video":
        mode = dataset.frame_extraction
        settings |= {"frame_extraction": mode, "source_fps": dataset.source_fps}
        settings |= {"max_frames": dataset.max_frames} if mode == "full" else {"target_frames": dataset.target_frames}
        settings |= {"frame_stride": dataset.frame_stride} if mode == "slide" else {}
        settings |= {"frame_sample": dataset.frame_sample} if mode == "uniform" else {}
    return plain(settings)


def content_of(path: Path, *, known: Content | None = None) -> Content:
    """What a source file holds, cheaply; `known` is trusted when size and time are the same.

    A folder of frames is its file names and sizes, and the samples of its first and last file. OSError passes.
    """
    files = sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else [path]
    stats = [file.stat() for file in files]
    size = sum(stat.st_size for stat in stats)
    mtime_ns = max((stat.st_mtime_ns for stat in stats), default=0)
    if known is not None and (known.name, known.size, known.mtime_ns) == (path.name, size, mtime_ns):
        return known
    digest = hashlib.sha256()
    if path.is_dir():
        listing = [(file.name, stat.st_size) for file, stat in zip(files, stats, strict=True)]
        digest.update(json.dumps(listing).encode())
    for file in dict.fromkeys([*files[:1], *files[-1:]]):
        _sample(file, digest)
    return Content(name=path.name, size=size, mtime_ns=mtime_ns, sample=digest.hexdigest())


def _sample(path: Path, digest: Any) -> None:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(struct.pack("<Q", size))
        digest.update(file.read(SAMPLE_BYTES))
        if size > SAMPLE_BYTES:
            file.seek(max(SAMPLE_BYTES, size - SAMPLE_BYTES))
            digest.update(file.read(SAMPLE_BYTES))


# ----------------------------------------------------------------------------------------------- the sidecar file


class Unreadable(Exception):
    """A sidecar that is there but does not say what it should."""


def read(path: Path) -> Fingerprint | None:
    """The fingerprint of a cache; None when it has none of its own (foreign). Unreadable for a garbled sidecar."""
    try:
        data = json.loads(sidecar_path(path).read_bytes())
        if data["version"] != VERSION:
            raise ValueError(f"version {data['version']}")
        digest = data["cache"]
        found = Fingerprint(
            source=tuple(Content(**content) for content in data["source"]),
            window=dict(data["window"]),
            settings=dict(data["settings"]),
            model=str(data["model"]),
            caption=str(data["caption"]),
            plan=dict(data["plan"]),
            in_use=bool(data["in_use"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Unreadable(f"{sidecar_path(path).name}: {error}") from error
    return found if digest == _cache_digest(path) else None


def write(path: Path, fingerprint: Fingerprint) -> None:
    """Write the sidecar of a finished cache. Written after it: a crash between the two leaves a foreign cache."""
    data = {
        "version": VERSION,
        "cache": _cache_digest(path),
        "source": [vars(content) for content in fingerprint.source],
        "window": plain(fingerprint.window),
        "settings": plain(fingerprint.settings),
        "model": fingerprint.model,
        "caption": fingerprint.caption,
        "plan": plain(fingerprint.plan),
        "in_use": fingerprint.in_use,
    }
    # not durable: a cache whose sidecar is lost is made again
    write_text(sidecar_path(path), json.dumps(data, indent=1), advice=ADVICE, durable=False)


def _cache_digest(path: Path) -> str:
    """Size, start and end of a cache file: enough to see that it is another one. "" when it is not there."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(struct.pack("<Q", size))
            digest.update(file.read(_TAIL_BYTES))
            file.seek(max(0, size - _TAIL_BYTES))
            digest.update(file.read(_TAIL_BYTES))
    except FileNotFoundError:
        return ""
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------- the questions


def state(path: Path, expected: Fingerprint) -> State:
    """Whether the cache at `path` is what `expected` would give. Reads headers and the sidecar only."""
    try:
        read_header(path)
    except DataError:
        return "missing"
    try:
        found = read(path)
    except Unreadable:
        return "stale"
    if found is None:
        return "foreign"
    return "fresh" if found.same_tensors(expected) else "stale"


def adopt(path: Path, expected: Fingerprint) -> None:
    """Note that a fresh cache belongs to the present plan; writes only when that is news."""
    found = read(path)
    if found is not None and (not found.in_use or plain(found.plan) != plain(expected.plan)):
        write(path, replace(found, plan=expected.plan, in_use=True))


def retire(path: Path) -> None:
    """Note that a cache stays on disk but is not trained on, also one that had no fingerprint of its own."""
    try:
        found = read(path) or Fingerprint()
    except Unreadable:
        found = Fingerprint()
    if found.in_use:
        write(path, replace(found, in_use=False))


def in_plan(found: Fingerprint, dataset: Dataset) -> bool:
    """Whether a cache was made under the dataset's present settings."""
    return plain(found.plan) == plan_settings(dataset)
