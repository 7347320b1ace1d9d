"""How many scales an fp8 weight has: for quantising (fp8.py) and for the planner. Standard library only."""

from __future__ import annotations

import math

BLOCK = 64
"""Input features that share a scale in mode "block"."""
MODES = ("block", "channel", "tensor", "cast")
SCALE_BYTES = 4
"""A layer keeps its scales in float32."""


def settled(mode: str, shape: tuple[int, ...]) -> str:
    """The mode that a weight of this shape gets: a row that blocks do not divide falls back to "channel", a weight that
    is not a matrix to "tensor"."""
    if mode not in MODES:
        raise ValueError(f"no fp8 mode {mode!r}: {', '.join(MODES)}")
    if mode == "cast":
        return mode
    if len(shape) != 2:
        return "tensor"
    return "channel" if mode == "block" and shape[1] % BLOCK else mode


def scale_bytes(mode: str, shape: tuple[int, ...]) -> int:
    """Bytes of the scales of a weight of this shape."""
    rows = {"block": math.prod(shape) // BLOCK, "channel": shape[0]}
    return SCALE_BYTES * rows.get(settled(mode, shape), 1)
