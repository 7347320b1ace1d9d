"""Reading of jsonl item lists: one JSON object a line, as musubi-tuner writes them.

Images: `image_path`, `caption`, and `control_path` or `control_path_0`, `control_path_1` … (any numbering, taken in
order). Videos: `video_path` (a file, or a folder of frames), `caption`, `control_path`. Other keys are left alone.
Relative paths are relative to the current folder, as there; what is not found is looked for beside the list.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..contract.errors import DataError

_NUMBERED = re.compile(r"control_path_(\d+)")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line: paths are resolved but not checked."""

    line: int  # from 1
    path: Path
    caption: str
    controls: tuple[Path, ...]


def read(path: Path, *, kind: str, problems: list[DataError]) -> list[Entry]:
    """The entries of a list of "image" or "video" items. A faulty line is added to `problems` and left out.

    Raises DataError when the file itself cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such list of {kind}s.", f"Correct {kind}_jsonl_file.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the list is not UTF-8 (byte {error.start}).", "Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path}: the list cannot be read ({error.strerror}).", "Check its permissions.") from error
    entries = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entries.append(_entry(json.loads(line), number, kind, path.parent))
        except json.JSONDecodeError as error:
            where = f"{path}: line {number}, column {error.colno}"
            problems.append(DataError(f"{where}: not valid JSON: {error.msg}.", "One JSON object a line is expected."))
        except ValueError as error:
            problems.append(DataError(f"{path}: line {number}: {error}.", "Correct that line."))
    return entries


def _entry(data: Any, number: int, kind: str, beside: Path) -> Entry:
    if not isinstance(data, dict):
        raise ValueError("an object in braces is expected")
    name = f"{kind}_path"
    if name not in data and f"{name}_0" in data:
        name += "_0"
    path, caption = _text(data, name), _text(data, "caption")
    numbered = sorted((int(match[1]), key) for key in data if (match := _NUMBERED.fullmatch(key)))
    keys = [key for key in ("control_path",) if data.get(key)] + [key for _, key in numbered if data[key]]
    controls = tuple(_resolved(_text(data, key), beside) for key in keys)
    return Entry(line=number, path=_resolved(path, beside), caption=caption.strip(), controls=controls)


def _text(data: dict[str, Any], key: str) -> str:
    if key not in data:
        raise ValueError(f"{key} is missing")
    if not isinstance(data[key], str):
        raise ValueError(f"{key} must be text, but is {data[key]!r}")
    return data[key]


def _resolved(text: str, beside: Path) -> Path:
    given = Path(os.path.expanduser(text))
    for base in (Path.cwd(), beside):
        if os.path.exists(base / given):
            return Path(os.path.normpath(base / given))
    return Path(os.path.normpath(Path.cwd() / given))
