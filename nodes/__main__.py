"""`python -m nodes [--check]` in the pack's folder: help pages, translations and the record of widget order.

The pack is loaded as a package first, as ComfyUI does, since its parts import each other relatively.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

NAME = "musubi_pack"


def main() -> int:
    """Load the pack, and write or check what is generated from it."""
    pack = Path(__file__).resolve().parents[1]
    spec = importlib.util.spec_from_file_location(NAME, pack / "__init__.py", submodule_search_locations=[str(pack)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    status: int = importlib.import_module(f"{NAME}.nodes.pages").main(sys.argv[1:])
    return status


if __name__ == "__main__":
    sys.exit(main())
