"""Formulas of noise levels that training and sampling share. sigma is 0 (clean) … 1 (noise)."""

from __future__ import annotations

import math

Line = tuple[tuple[int, float], tuple[int, float]]
FLUX_LINE: Line = ((256, 0.5), (4096, 1.15))
"""Two points of (tokens, mu): Flux's line, which many models adopted."""


def shift_sigma(sigma, shift: float):
    """Move sigma (0..1, number, array or tensor) towards noise: s·σ / (1 + (s − 1)·σ) (Esser et al., 2403.03206)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def mu_on(line: Line, tokens: int) -> float:
    """The logarithm of the shift for a sequence of `tokens` tokens, on the line through two points."""
    (left, mu_left), (right, mu_right) = line
    slope = (mu_right - mu_left) / (right - left)
    return mu_left + slope * (tokens - left)


def framepack_mu(tokens: int) -> float:
    """The logarithm of FramePack's shift for a sequence of `tokens` tokens: Flux's line, at most ln 7."""
    return min(mu_on(FLUX_LINE, tokens), math.log(7.0))
