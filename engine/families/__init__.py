"""Finds model families: each is a folder with an `options.py`. There is no list of families anywhere.

`part("wan", "text")` imports one file of one family when it is asked for, so caching never loads the DiT and training
never loads the text encoder. Families outside this folder (tests have one) are found through `extra_path`, or through
the folders named in the environment variable MUSUBI_FAMILIES.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

ENVIRONMENT = "MUSUBI_FAMILIES"


def extra_path(folder: str | os.PathLike[str]) -> None:
    """Look for families in this folder as well. They are imported as if they stood here."""
    path = str(Path(folder).resolve())
    if path not in __path__:
        __path__.append(path)


def names(*, extra: bool = True) -> list[str]:
    """The families that exist, by the names of their folders, sorted; without `extra` only those of the engine."""
    found = {
        entry.name
        for folder in map(Path, __path__ if extra else __path__[:1])
        if folder.is_dir()
        for entry in folder.iterdir()
        if (entry / "options.py").is_file()
    }
    return sorted(found)


def part(family: str, file: str) -> ModuleType:
    """One file of a family: `part("wan", "options")`. `-` counts as `_`. KeyError for a family that does not exist."""
    folder = family.replace("-", "_")
    module = f"{__name__}.{folder}.{file}"
    if module not in sys.modules and folder not in names():  # what is imported need not be looked for
        raise KeyError(f"No model family {family}; there are: {', '.join(names())}")
    return importlib.import_module(module)


def offers(family: str, file: str) -> bool:
    """Whether a family has one of the files that not every family has (contract.py, OPTIONAL_FILES)."""
    return importlib.util.find_spec(f"{__name__}.{family.replace('-', '_')}.{file}") is not None


for _folder in filter(None, os.environ.get(ENVIRONMENT, "").split(os.pathsep)):
    extra_path(_folder)
