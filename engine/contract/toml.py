"""TOML job files: reading with good errors, flattening, and writing flat keys under comment headings.

Reading uses the standard library's parser, on Python 3.10 the `tomli` package. Writing needs no package: a job has only
texts, numbers, truth values and lists of them.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import OptionError
from .missing import looked_for, missing_file_hint

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}


def _parser() -> ModuleType:
    for name in ("tomllib", "tomli"):
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(name)
    raise OptionError(
        "This Python is 3.10, which cannot read TOML by itself.", hint="Install the package tomli, or use Python 3.11."
    )


def find(path: str) -> Path:
    """The config file that `path` names; its `.toml` may be left out. OptionError when there is none."""
    for candidate in (Path(path), Path(path + ".toml")):
        if candidate.is_file():
            return candidate
    hint = f"Change --config_file.{looked_for(Path(path))}"
    if Path(path).is_dir():
        raise OptionError(f"The config file {path} is a folder, not a file.", hint=hint, names=("config_file",))
    hint = missing_file_hint(Path(path)) or hint
    raise OptionError(f"The config file {path} does not exist.", hint=hint, names=("config_file",))


def load(path: str | Path) -> dict[str, Any]:
    """A TOML file as nested dicts. OptionError names file and line of a mistake."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OptionError(f"{path} is not a text file in UTF-8.", hint="Save it again as UTF-8.") from error
    except OSError as error:
        raise OptionError(f"{path} cannot be read: {error.strerror}.") from error
    return loads(text, str(path))


def loads(text: str, place: str) -> dict[str, Any]:
    """TOML text as nested dicts. OptionError names `place`, where the text stands, and the line of a mistake."""
    parser = _parser()
    try:
        data: dict[str, Any] = parser.loads(text)
    except parser.TOMLDecodeError as error:
        hint = "On Windows, write paths as 'C:\\folder' in single quotes." if "\\" in text else ""
        raise OptionError(f"{place} is not valid TOML: {error}.", hint=hint) from error
    return data


def flat(data: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Tables are only headings: their keys count as if they stood at the top. A key in two tables is an error."""
    found: dict[str, Any] = {}
    seen_in: dict[str, str] = {}
    for name, value in data.items():
        table = isinstance(value, Mapping)
        for key, item in value.items() if table else [(name, value)]:
            here = f"[{name}]" if table else "the top"
            if key in found:
                raise OptionError(f"{key} stands twice in {path}: at {seen_in[key]} and {here}.", hint="Keep one.")
            found[key], seen_in[key] = item, here
    return found


def line(key: str, value: Any) -> str:
    """`key = value`. Values are texts, truth values, numbers and lists or tuples of them."""
    return f"{key} = {_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + "".join(_character(character) for character in value) + '"'
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    raise TypeError(f"Not a value for a job file: {value!r}")


def _character(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if ord(character) < 0x20 or ord(character) == 0x7F:
        return f"\\u{ord(character):04X}"
    return character
