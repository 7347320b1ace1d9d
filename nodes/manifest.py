"""Finding results again by what they depend on, so that an unchanged graph starts no engine, even after a restart.

The key of a result is a hash of the command, its options, and size and time of every file that goes in; the manifest
says which run made it and which files it consists of. A result is valid only while all of them are unchanged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..engine.contract.files import write_text
from ..engine.contract.job import Job
from ..engine.contract.schema import options
from . import paths

FORMAT = 1
ABOUT_THE_RUN = frozenset(
    """config_file print_config events job_dir log_level save_path output_dir output output_file save_merged_model
    save_merged_lora preview_latent_every preview_vae""".split()
)
"""Options that do not change a result."""


def stamp_of(path: Path) -> list[Any]:
    """Size and time of a file, or of all files below a folder; [] if there is nothing."""
    try:
        if path.is_dir():
            inside = sorted(place for place in path.rglob("*") if place.is_file())
            return [[str(place.relative_to(path)), *stamp_of(place)] for place in inside]
        about = path.stat()
        return [about.st_size, about.st_mtime_ns]
    except OSError:
        return []


def listing_stamp(folder: Path, patterns: Iterable[str]) -> str:
    """A hash of the names, sizes and times of the files of a folder that match."""
    found = sorted({place for pattern in patterns for place in folder.glob(pattern)})
    return _hash([[place.name, *stamp_of(place)] for place in found])


def key_of(job: Job, *, beside: Mapping[str, Any] | None = None, without: Iterable[str] = ()) -> str:
    """The key of what a job makes. `beside`: what else it depends on, such as the files of a dataset;
    `without`: options that do not matter here.

    Options at their defaults do not count, so that a version with more options finds the results of an older one.
    """
    values: dict[str, Any] = {}
    files: dict[str, Any] = {}
    for section in job.sections.values():
        for option in options(type(section)):
            value = getattr(section, option.name)
            if option.name in (*ABOUT_THE_RUN, *without) or value == option.default:
                continue
            values[option.name] = value
            if option.file_kind:
                listed = value if isinstance(value, tuple) else (value,)
                files.update({path: stamp_of(Path(path)) for path in listed if path})
    return _hash([FORMAT, job.name, values, files, dict(beside or {})])


def find(key: str) -> dict[str, Any] | None:
    """The note on a result whose files are all unchanged; None otherwise."""
    try:
        noted = json.loads(_path(key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(noted, dict) or noted.get("format") != FORMAT:
        return None
    if any(stamp_of(Path(path)) != stamp or not stamp for path, stamp in noted["files"].items()):
        return None
    for folder, patterns, stamp in noted["folders"]:
        if listing_stamp(Path(folder), patterns) != stamp:
            return None
    return noted


def note(
    key: str, *, run: str, files: Iterable[str], folders: Iterable[tuple[str, tuple[str, ...]]] = (), **more: Any
) -> None:
    """Remember a result: its files, and folders of which the files that match belong to it."""
    noted = {
        "format": FORMAT, "run": run, "files": {path: stamp_of(Path(path)) for path in files},
        "folders": [[folder, list(patterns), listing_stamp(Path(folder), patterns)] for folder, patterns in folders],
        **more,
    }  # fmt: skip
    write_text(_path(key), json.dumps(noted, ensure_ascii=False, indent=1) + "\n", durable=False)


def _path(key: str) -> Path:
    return paths.private() / "results" / f"{key}.json"


def _hash(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]
