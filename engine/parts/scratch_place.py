"""Where scratch files (mapped_files.py) go, what tensors take in them, and how much room there is.

Imports no torch, as the planner uses it too.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from ..contract.errors import DiskError
from ..contract.home import engine_home

FOLDER = "MUSUBI_SCRATCH"
ADVICE = f"Free some space, or set the environment variable {FOLDER} to a folder on a larger disk."
_GIB = 1 << 30


def scratch_folder() -> Path:
    """Where scratch files go: MUSUBI_SCRATCH, else the engine's home, else the system's folder for temporary files."""
    home = engine_home()
    kept = Path(tempfile.gettempdir()) if home is None else home / "scratch"
    return Path(os.environ.get(FOLDER) or kept).expanduser()


def scratch_free() -> int | None:
    """Bytes that are free there, even if the folder does not exist yet; None if that cannot be found out."""
    folder = scratch_folder().absolute()
    for place in (folder, *folder.parents):
        try:
            return shutil.disk_usage(place).free
        except FileNotFoundError:
            continue
        except OSError:
            break
    return None


def aligned(size: int) -> int:
    """Bytes that a tensor of `size` bytes takes in a scratch file."""
    return -(-size // 64) * 64


def taken(size: int, folder: Path | str, *, processes: int = 1) -> str:
    """The beginning of a message, before and while a model is loaded. `size`: bytes that all processes write."""
    files = "a scratch file" if processes == 1 else f"scratch files of {processes} processes"
    return f"Weights that are changed while they are loaded take {size / _GIB:.1f} GiB in {files} in {folder}"


def too_little(size: int, folder: Path | str, free: int, *, processes: int = 1) -> str:
    return f"{taken(size, folder, processes=processes)}, which has {free / _GIB:.1f} GiB free."


def no_room(folder: Path, size: int, free: int) -> DiskError:
    return DiskError(too_little(size, folder, free), ADVICE)
