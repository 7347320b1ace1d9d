"""Where scratch files go (`mapped_files.py`), what tensors take in them and what there is: asked by the planner too.

Imports no torch.
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
    """Where scratch files go: MUSUBI_SCRATCH, else beside what else the engine keeps, else the system's place."""
    home = engine_home()
    kept = Path(tempfile.gettempdir()) if home is None else home / "scratch"
    return Path(os.environ.get(FOLDER) or kept).expanduser()


def scratch_free() -> int | None:
    """Bytes that are free there, also while the folder is still to be made; None where nobody can tell."""
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
    """What a tensor of so many bytes takes in a scratch file."""
    return -(-size // 64) * 64


def taken(size: int, folder: Path | str) -> str:
    """How it is told, before and while a model is loaded."""
    return f"Weights that are changed while they are loaded take {size / _GIB:.1f} GiB in a scratch file in {folder}"


def too_little(size: int, folder: Path | str, free: int) -> str:
    return f"{taken(size, folder)}, which has {free / _GIB:.1f} GiB free."


def no_room(folder: Path, size: int, free: int) -> DiskError:
    return DiskError(too_little(size, folder, free), ADVICE)
