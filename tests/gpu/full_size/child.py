"""`python -m tests.gpu.full_size.child PEAKS.json ARGUMENT …`: one engine command, and the memory that it took."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from engine.__main__ import main

GIB = 1 << 30


def peaks() -> dict[str, float]:
    """The largest amounts of GPU memory that this process held, as tensors and from the driver."""
    if not torch.cuda.is_available():
        return {}
    return {
        "peak_alloc_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "peak_reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2),
    }


if __name__ == "__main__":
    target, *command = sys.argv[1:]
    status = main(command)
    Path(target).write_text(json.dumps(peaks()))
    sys.exit(status)
