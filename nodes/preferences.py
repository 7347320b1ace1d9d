"""The settings that belong to the server and never to a workflow: where the engine lives, which GPU, allowed folders.

Kept in a folder that ComfyUI does not serve. A file that cannot be read counts as none and is left as it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..engine.contract.errors import OptionError
from ..engine.contract.files import write_text
from . import host

FILE = "settings.json"
LONGEST_KEPT = 24 * 60
LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, kw_only=True)
class Preferences:
    """`home`: the folder of the engine's environment ("": the platform's). `gpu`: "auto", "cpu" or a number.

    `keep_alive`: minutes for which an engine stays after a generation, with its models, for the next one; 0: it ends,
    so that all memory is ComfyUI's again. `roots`: folders, besides ComfyUI's own, that workflows may use.
    """

    home: str = ""
    gpu: str = "auto"
    keep_alive: int = 0
    log_level: str = "info"
    roots: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "roots": list(self.roots)}


KNOWN = frozenset(field.name for field in fields(Preferences))


def path() -> Path:
    return Path(host.folder_paths().get_system_user_directory("musubi")) / FILE


def load() -> Preferences:
    """The settings as they are now; the defaults if there are none. Settings of a newer version are ignored."""
    try:
        return made_of({name: value for name, value in _kept().items() if name in KNOWN})
    except OptionError:
        return Preferences()


def _kept() -> dict[str, Any]:
    """The content of the file; {} if there is none that can be read."""
    try:
        found = json.loads(path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def save(changes: Mapping[str, Any]) -> Preferences:
    """Change some settings and keep them. OptionError: one is wrong. DiskError: they cannot be written."""
    changed = made_of({**load().as_json(), **changes})
    write_text(path(), json.dumps({**_kept(), **changed.as_json()}, indent=1) + "\n")
    return changed


def made_of(data: Mapping[str, Any]) -> Preferences:
    """Settings from JSON. The OptionError names the wrong one."""
    unknown = [name for name in data if name not in KNOWN]
    if unknown:
        raise OptionError(f"There is no setting {unknown[0]!r}.", hint=f"Choose one of: {', '.join(sorted(KNOWN))}.")
    gpu, level = data.get("gpu", "auto"), data.get("log_level", "info")
    if not isinstance(gpu, str) or not (gpu in ("auto", "cpu") or gpu.isdecimal()):
        raise OptionError(f"gpu cannot be {gpu!r}.", hint="Use auto, cpu, or the number of a GPU such as 0.")
    minutes = data.get("keep_alive", 0)
    if not isinstance(minutes, int) or isinstance(minutes, bool) or not 0 <= minutes <= LONGEST_KEPT:
        raise OptionError(
            f"keep_alive cannot be {minutes!r}.", hint=f"Use whole minutes, 0 (off) to {LONGEST_KEPT}."
        )  # fmt: skip
    if level not in LEVELS:
        raise OptionError(f"log_level cannot be {level!r}.", hint=f"Use {', '.join(LEVELS)}.")
    listed = data.get("roots", [])
    if not isinstance(listed, (list, tuple)):
        raise OptionError("roots needs a list of folders.")
    home = _folder(data.get("home", ""), "home", may_be_missing=True)
    roots = tuple(_folder(root, "roots") for root in listed)
    return Preferences(home=home, gpu=gpu, keep_alive=minutes, log_level=level, roots=roots)


def _folder(text: Any, where: str, *, may_be_missing: bool = False) -> str:
    if not isinstance(text, str) or "\0" in text or (text and not os.path.isabs(text)):
        raise OptionError(f"{where}: {text!r} is not an absolute path of a folder.", hint="Write the whole path.")
    if not text and not may_be_missing:
        raise OptionError(f"{where}: an empty path.", hint="Write the whole path.")
    if text and Path(text).parent == Path(text):
        raise OptionError(f"{where}: {text} is a whole disk.", hint="Name a folder on it.")
    return text
