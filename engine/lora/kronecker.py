"""How LoKr factorises a matrix: the sizes of the factors, for the planner. Plain numbers.

Training takes them from lycoris-lora, which the planner does not import since that would import torch. A test checks
that both agree.
"""

from __future__ import annotations

import math

Shape = tuple[int, ...]


def lokr_shapes(
    out_features: int, in_features: int, rank: int, *, factor: int = -1, whole: bool = False, both: bool = False
) -> dict[str, Shape]:
    """The parameters of a LoKr and their shapes: [l, m] and [k, n] with l k = out, m n = in.

    A factor becomes a product if the rank is below half its longer side: the second always, the first only with `both`.
    `whole` keeps both whole.
    """
    (rows1, rows2), (columns1, columns2) = factorised(out_features, factor), factorised(in_features, factor)
    shapes: dict[str, Shape] = {}
    for name, rows, columns, may in (("lokr_w1", rows1, columns1, both), ("lokr_w2", rows2, columns2, True)):
        if may and not whole and rank < max(rows, columns) / 2:
            shapes |= {f"{name}_a": (rows, rank), f"{name}_b": (rank, columns)}
        else:
            shapes[name] = (rows, columns)
    return shapes


def factorised(size: int, factor: int = -1) -> tuple[int, int]:
    """(small, large) with small * large = size: `factor` and its cofactor if it divides, else as even as possible.

    A positive factor that does not divide the size is an upper bound for the smaller number.
    """
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    limit = math.isqrt(size) if factor < 0 else min(max(1, factor), math.isqrt(size))
    small = next(number for number in range(limit, 0, -1) if size % number == 0)
    return small, size // small
