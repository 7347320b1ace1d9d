"""`env.json`: what has been done to the environment. The only truth: a step that is not in it did not happen.

Written whole, under a temporary name, after each step. Half a file, or one of another format, counts as none.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from .problems import disk_or_home

FORMAT = 1


@dataclass
class Stamp:
    """What one environment was made of.

    `chosen`: the person named the build of PyTorch (MUSUBI_TORCH). `steps` maps a finished step to the fingerprint of
    what it was made from. `extras` are the optional packages that the person asked for. `entries` are the names in
    site-packages when it was last good, `versions` its packages.
    """

    build: str = ""
    chosen: bool = False
    interpreter: str = ""
    python: str = ""
    pack: str = ""
    made: str = ""
    seconds: float = 0.0
    ready: bool = False
    steps: dict[str, str] = field(default_factory=dict)
    extras: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    entries: list[str] = field(default_factory=list)
    format: int = FORMAT


def load(path: Path) -> Stamp | None:
    """The stamp at `path`, or None when there is none that can be understood."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        return None
    known = {item.name: type(getattr(Stamp(), item.name)) for item in fields(Stamp)}
    for name, value in values.items():
        if name in known and not isinstance(value, known[name]) and not (known[name] is float and type(value) is int):
            return None
    return Stamp(**{name: value for name, value in values.items() if name in known})


def save(stamp: Stamp, path: Path) -> None:
    """Write it so that a reader sees the old one or the new one, whatever happens in between."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(asdict(stamp), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as failure:
        raise disk_or_home(failure, path) from failure
