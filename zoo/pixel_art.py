"""Tells pixel art: whether a clip is made of blocks, each of one colour."""

from __future__ import annotations

import numpy as np

from .drawing import PIXEL_ART_BLOCKS
from .seeing import SIDE, Sight

_BLOCK = SIDE // PIXEL_ART_BLOCKS
_SHIFTS = ((2, 0), (0, 2), (2, 2), (1, 1), (3, 3), (1, 3), (3, 1))
_ENOUGH = 1.15  # of blockiness


def is_pixel_art(sight: Sight) -> bool:
    """Whether the clip is more made of blocks than chance and compression bring about."""
    return blockiness(sight) > _ENOUGH


def blockiness(sight: Sight) -> float:
    """How many times more the colours vary inside blocks that lie elsewhere than inside those of pixel art.

    About 1 in ordinary clips, without end in perfect pixel art. Of the blocks elsewhere those that come off best count,
    since a still thing may have its sides on the edges of some by chance.
    """
    elsewhere = min(_variation(sight.lab, down, right) for down, right in _SHIFTS)
    return float(elsewhere / max(_variation(sight.lab, 0, 0), 1e-6))


def _variation(lab: np.ndarray, down: int, right: int) -> float:
    """The sum of squared differences from the mean of each block; the blocks begin at this row and column."""
    count = SIDE // _BLOCK - 1
    part = lab[:, down : down + count * _BLOCK, right : right + count * _BLOCK]
    blocks = part.reshape(len(lab), count, _BLOCK, count, _BLOCK, 3)
    return float(((blocks - blocks.mean((2, 4), keepdims=True)) ** 2).sum())
