"""Where the environment and everything that must survive live. The only file that knows.

Outside the pack's folder, because ComfyUI-Manager moves and deletes that one. Knows paths, makes nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
REQUIREMENTS = Path(__file__).resolve().parent / "requirements"
WINDOWS = os.name == "nt"


@dataclass(frozen=True)
class Home:
    """The folder called MUSUBI_HOME and the names in it."""

    path: Path

    @property
    def env(self) -> Path:
        return self.path / "env"

    @property
    def marker(self) -> Path:
        """Lies in the environment from its first moment: what carries it was made here and may be deleted."""
        return self.env / "made-by-musubi.txt"

    @property
    def stamp(self) -> Path:
        return self.path / "env.json"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def cache(self) -> Path:
        """What installers keep, so that a repair or a second try downloads little. Ours alone."""
        return self.path / "cache" / "bootstrap"

    @property
    def scratch(self) -> Path:
        """Where the engine's temporary files are (engine/parts/mapped_files.py)."""
        return self.path / "scratch"

    @property
    def attention(self) -> Path:
        """What the engine remembers of the GPU's kernels (engine/tasks/attention_kernels.py)."""
        return self.path / "attention.json"

    @property
    def temporary(self) -> Path:
        """Where installers unpack: the same disk as the environment, because /tmp is often small or in memory."""
        return self.cache / "tmp"

    @property
    def tools(self) -> Path:
        return self.cache / "tools"

    @property
    def python(self) -> Path:
        return self.env / ("Scripts/python.exe" if WINDOWS else "bin/python")

    def site_packages(self) -> Path | None:
        """The environment's package folder, None while there is none."""
        found = sorted(self.env.glob("Lib/site-packages" if WINDOWS else "lib/python3.*/site-packages"))
        return found[0] if found else None


def default_path(environment: Mapping[str, str]) -> Path:
    """The platform's per-user data folder, plus `musubi`."""
    user = Path(os.path.expanduser("~"))
    if WINDOWS:
        return Path(environment.get("LOCALAPPDATA") or user / "AppData" / "Local") / "musubi"
    if sys.platform == "darwin":
        return user / "Library" / "Application Support" / "musubi"
    data = environment.get("XDG_DATA_HOME", "")
    return (Path(data) if os.path.isabs(data) else user / ".local" / "share") / "musubi"


def find_home(environment: Mapping[str, str]) -> Home:
    """The home that this environment asks for: MUSUBI_HOME when set, else the platform's default."""
    given = environment.get("MUSUBI_HOME", "").strip()
    return Home(Path(os.path.abspath(os.path.expanduser(given))) if given else default_path(environment))
