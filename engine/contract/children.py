"""Starting a further process of the engine: the same Python, the same environment, from any working directory.

Not by `-m`, which would put the working directory first on the module path, where a stray `torch.py` shadows ours; and
not by a PYTHONPATH of ours, which would take the place of one that the person has set (env_bootstrap and the nodes have
left out the calling Python's before the engine began), so that a child would find other packages than its parent.
"""

from __future__ import annotations

import sys
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
_START = (
    "import runpy, sys; sys.path[0] = sys.argv.pop(1); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def module_command(module: str, *words: str) -> list[str]:
    """The command line that runs a module of the pack, as `python -m MODULE WORDS` would in the pack's folder."""
    return [sys.executable, "-c", _START, str(PACK), module, *words]
