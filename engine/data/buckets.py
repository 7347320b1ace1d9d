"""Which size a picture is brought to: aspect-ratio buckets of equal area, as musubi-tuner chooses them.

Sizes are (width, height) in pixels. What differs on purpose: no side is ever below one step. The reference returns a
zero side for a very thin small picture, and divides by zero for a budget below 32 x 32.
"""

from __future__ import annotations

import math
from functools import lru_cache

from ..media.resize import STEP
from ..media.resize import fit_size as fit_size

Size = tuple[int, int]


def floor_to(value: int, step: int = STEP) -> int:
    """The largest multiple of `step` that is not above `value`."""
    return value // step * step


def bucket_sizes(resolution: Size, step: int = STEP) -> list[Size]:
    """All bucket sizes for the area of `resolution`, sorted: each about that area, never above it."""
    return list(_table(resolution, step))


@lru_cache(maxsize=256)
def _table(resolution: Size, step: int) -> tuple[Size, ...]:
    area = resolution[0] * resolution[1]
    side = math.isqrt(area)
    sizes = set()
    for short in range(max(floor_to(side // 2, step), step), side + step, step):
        other = floor_to(area // short, step)
        if other >= step:
            sizes |= {(short, other), (other, short)}
    return tuple(sorted(sizes)) or ((step, step),)


def choose_bucket(
    size: Size, *, resolution: Size, enable_bucket: bool, no_upscale: bool = False, step: int = STEP
) -> Size:
    """The size that a picture of `size` is brought to.

    Without buckets that is `resolution`. With them, the bucket of the nearest aspect ratio (the first in sorted order
    when two are equally near); with `no_upscale`, a picture within the area keeps its own size, floored to the step.
    """
    if not enable_bucket:
        return resolution
    width, height = size
    if no_upscale and width * height <= resolution[0] * resolution[1]:
        return max(floor_to(width, step), step), max(floor_to(height, step), step)
    aspect = width / height
    return min(_table(resolution, step), key=lambda bucket: abs(bucket[0] / bucket[1] - aspect))
