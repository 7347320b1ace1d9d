"""Shapes and textures as functions of a place on the thing: u to its right, v downwards, 1 is its radius.

A shape gives the signed distance to its outline, negative inside: exact near the outline, as smooth edges need it. A
texture gives how far the thing's colour goes over to its shade there, 0 to 1. Only operations that every
machine rounds alike: no sine, no power.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

REACH = 1.17  # no shape goes further from its centre
_HALF_ROOT_3 = 0.8660254


def _circle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.sqrt(u * u + v * v) - 1.0


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - 0.82


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(v, _HALF_ROOT_3 * np.abs(u) - 0.5 * v) - 0.58


_TIPS = ((0.0, -1.0), (0.951057, -0.309017), (0.587785, 0.809017), (-0.587785, 0.809017), (-0.951057, -0.309017))


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A pentagram is where at most one of its five lines is overstepped: the second largest distance counts."""
    first = np.full_like(u, -np.inf)
    second = first
    for tip_u, tip_v in _TIPS:
        beyond = tip_u * u + tip_v * v
        second = np.maximum(second, np.minimum(first, beyond))
        first = np.maximum(first, beyond)
    return second - 0.36


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(np.sqrt(u * u + v * v) - 0.74) - 0.27


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    long, short = np.maximum(np.abs(u), np.abs(v)) - 1.0, np.minimum(np.abs(u), np.abs(v)) - 0.34
    return np.maximum(long, short)


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A square on its corner, with a half circle on each of its upper sides."""
    side, lower = np.abs(u), v - 0.24
    half = 0.86
    lobe = np.sqrt((side - half / 2) ** 2 + (lower + half / 2) ** 2) - 0.7071068 * half
    return np.minimum(0.7071068 * (side + np.abs(lower) - half), lobe)


def _moon(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A disc with another cut out of its right side, moved so that its centre of mass is in the middle."""
    from_left = u - 0.36
    cut = np.sqrt((from_left - 0.5) ** 2 + v * v) - 0.8
    return np.maximum(np.sqrt(from_left * from_left + v * v) - 0.94, -cut)


def _hexagon(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(v), _HALF_ROOT_3 * np.abs(u) + 0.5 * np.abs(v)) - 0.92


OUTLINES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "heart": _heart,
    "moon": _moon,
    "hexagon": _hexagon,
}


def wave(turns: np.ndarray) -> np.ndarray:
    """A triangle wave of period 1 between -1 and 1."""
    return 4 * np.abs(turns - np.floor(turns) - 0.5) - 1


def _checkered(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.clip(0.5 + 4 * wave(u / 1.2 + 0.25) * wave(v / 1.2 + 0.25), 0, 1)


def _dotted(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    across, along = u / 0.64, v / 0.64
    across, along = across - np.floor(across + 0.5), along - np.floor(along + 0.5)
    return np.clip(2.6 - 8 * np.sqrt(across * across + along * along), 0, 1)


def _gradient(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.clip(0.5 + 0.55 * v, 0, 1)


def _striped(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.clip(0.5 + 2.5 * wave(v / 0.62 + 0.25), 0, 1)


TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "checkered": _checkered,
    "dotted": _dotted,
    "gradient": _gradient,
    "striped": _striped,
}
