"""The folder that the engine's environment lives in, where it keeps what it may lose: MUSUBI_HOME, told or not.

Knows nothing of how the environment is made (env_bootstrap/home.py, whose names these are).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def engine_home() -> Path | None:
    """MUSUBI_HOME, else the folder around this Python, if an environment of ours was made there; else None."""
    told = os.environ.get("MUSUBI_HOME", "").strip()
    around = Path(sys.prefix).parent
    if told:
        return Path(told).expanduser()
    return around if (around / "env.json").is_file() else None


def results_folder(name: str) -> Path:
    """Where results go that nobody gave a place: beside the engine's environment, else in the current folder."""
    home = engine_home()
    return Path(f"musubi-{name}") if home is None else home / name
