"""Runs a module of this pack in the environment's Python: `python start.py MODULE …`, from any working directory.

A script rather than `-m`: `-m` would put the person's working directory first on the module path, where a stray
`torch.py` or `engine/` shadows ours; PYTHONPATH would leak into everything the engine starts.
"""

from __future__ import annotations

import os
import runpy
import sys

if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
