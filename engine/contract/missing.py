"""What to say of a file that is not there: the nearest name in its folder, or how much of its path there is.

Knows nothing of what the file was to hold; whoever misses it says that.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

ALIKE = 0.5
"""From here on two names are taken for a slip of the fingers (difflib's ratio)."""


def missing_file_hint(path: Path) -> str:
    """The hint for a missing file, "" where nothing near is known. A folder that may not be read holds no names."""
    folder = Path(os.path.abspath(path)).parent
    if not folder.is_dir():
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        return f"Its folder does not exist; {folder} does."
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        names = []
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=ALIKE)
    return f"Did you mean {' or '.join(near)}?" if near else ""


def looked_for(path: Path) -> str:
    """Where a relative path was looked for; "" for a whole one, which says so itself."""
    return "" if path.is_absolute() else f" It was looked for in {Path.cwd()}."
