"""Run by the environment's own Python: imports each module named on its command line, prints what it found as JSON.

`{"failed": {module: reason}, "torch": version, "python": version, "device": name of the GPU or ""}`
"""

from __future__ import annotations

import importlib
import json
import sys


def main(modules: list[str]) -> dict[str, object]:
    """Try each module; what a broken one raises (any exception, from any library) is the answer, not our failure."""
    failed = {}
    for name in modules:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as failure:
            failed[name] = f"{type(failure).__name__}: {failure}".splitlines()[0][:300]
    torch = sys.modules.get("torch")
    device = ""
    if torch is not None and "torch" not in failed and torch.cuda.is_available():
        device = torch.cuda.get_device_name(0)
    return {
        "failed": failed,
        "torch": getattr(torch, "__version__", ""),
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "device": device,
    }


if __name__ == "__main__":
    sys.path.pop(0)
    print(json.dumps(main(sys.argv[1:])))
