"""Colours as people tell them apart: OKLab, after Björn Ottosson's published definition (2020)."""

from __future__ import annotations

import numpy as np

_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_LEVELS = np.arange(256) / 255
_LINEAR = np.where(_LEVELS <= 0.04045, _LEVELS / 12.92, ((_LEVELS + 0.055) / 1.055) ** 2.4).astype(np.float32)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """[..., 3] uint8 sRGB to float32 OKLab: lightness 0..1, then green to red and blue to yellow, about -0.3..0.3."""
    return np.cbrt(_LINEAR[rgb] @ _TO_CONES.T.astype(np.float32)) @ _TO_LAB.T.astype(np.float32)


def distance(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """How different two colours look: 0 the same, 1 black and white."""
    first, second = oklab(np.array([one, other], np.uint8))
    return float(np.sqrt(((first - second) ** 2).sum()))
