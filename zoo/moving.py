"""Names the motion of a thing that was followed through a clip: the way that fits its track best.

Plain measurements: each kind of motion has a curve whose size is free, and the one that leaves least unexplained is it.
A thing that keeps its place may spin, grow, shrink or stay still.
"""

from __future__ import annotations

import cv2
import numpy as np

from .facts import STEPS
from .motion import times
from .seeing import SIDE, Sight, Track
from .shapes import wave

_LEAST_WAY = 0.09  # share of the picture; a thing that goes less far keeps its place
_PRICE = dict.fromkeys(("orbit", "zigzag x", "zigzag y"), 0.03**2)
"""Squared shares of the picture that a curve has to explain, above a simpler one that is part of it."""
_LEAST_GROWTH = 1.3  # from its first radius to its last
_LEAST_TURN = 0.16  # in turns, over the clip
_FEWEST_FRAMES = 5
_ANGLES, _RADII = 72, np.array([0.45, 0.65, 0.85, 1.05, 1.25])  # the latter as shares of the root of a thing's area / 2
_LAG = 2  # frames between which a turn is measured
_FURTHEST_TURN = 7  # of the angles, in that time; half of what a star needs to look the same


def seen_motion(sight: Sight, track: Track) -> str:
    """One of the motions of `facts`, those of the concepts too; "" where the thing is not seen long enough."""
    if track.seen.sum() < max(_FEWEST_FRAMES, len(track.seen) // 2):
        return ""
    # what is half covered has its centre elsewhere
    weights = track.seen * np.minimum(track.areas / np.median(track.areas[track.seen]), 1) ** 4
    time = times(len(track.seen))
    left_over = {name: _left_over(track.centres, weights, curves) for name, curves in _curves(time).items()}
    if left_over.pop("still") ** 0.5 * 3.5 < _LEAST_WAY:
        return _in_place(sight, track, weights, time)
    best = min(left_over, key=lambda name: left_over[name] + _PRICE.get(name, 0.0))
    if best == "straight":
        return _direction(track.centres, weights, time)
    if best.startswith("zigzag"):
        back, forth = _ENDS[best]
        along = _slopes(track.centres, weights, time)["xy".index(best[-1])]
        return f"zigzag {forth if along > 0 else back}"
    return best


_ENDS = {"zigzag x": ("left", "right"), "zigzag y": ("up", "down")}
Curves = tuple[list[np.ndarray], list[np.ndarray]]  # what x and y are made of, besides a constant


def _curves(time: np.ndarray) -> dict[str, Curves]:
    """For each motion the curves [F] that its x and its y are made of, in any size."""
    turn = 2 * np.pi * time
    fall = (2 * time + 0.5) % 1.0
    hop, sway = 4 * fall * (1 - fall), wave(2 * time + 0.25)
    return {
        "still": ([], []),
        "straight": ([time], [time]),
        "bounce": ([], [hop]),
        "swing": ([np.cos(turn)], []),
        "orbit": ([np.cos(turn), np.sin(turn)], [np.cos(turn), np.sin(turn)]),
        "zigzag x": ([time], [sway]),
        "zigzag y": ([sway], [time]),
    }


def _left_over(centres: np.ndarray, weights: np.ndarray, curves: Curves) -> float:
    """The weighted mean square of what the curves do not explain, in squared shares of the picture."""
    total, root = 0.0, np.sqrt(weights)[:, None]
    for axis, parts in enumerate(curves):
        terms = np.stack([np.ones_like(weights), *parts], axis=1)
        fitted = terms @ np.linalg.lstsq(root * terms, root[:, 0] * centres[:, axis], rcond=None)[0]
        total += float((weights * (centres[:, axis] - fitted) ** 2).sum() / weights.sum())
    return total


def _slopes(centres: np.ndarray, weights: np.ndarray, time: np.ndarray) -> np.ndarray:
    """[2]: how far a straight line through the track goes in x and y over the clip."""
    off = time - (weights * time).sum() / weights.sum()
    return (weights * off) @ centres / (weights * off * off).sum()


def _direction(centres: np.ndarray, weights: np.ndarray, time: np.ndarray) -> str:
    slopes = _slopes(centres, weights, time)
    fits = {name: slopes @ np.array(step) / np.hypot(*step) for name, step in STEPS.items()}
    return max(fits, key=lambda name: fits[name])


def _in_place(sight: Sight, track: Track, weights: np.ndarray, time: np.ndarray) -> str:
    radii = np.sqrt(np.maximum(track.areas, 1))
    slope = _slopes(np.log(radii)[:, None], weights, time)[0]
    if abs(slope) > np.log(_LEAST_GROWTH):
        return "grow" if slope > 0 else "shrink"
    return "spin" if abs(turns(sight, track)) > _LEAST_TURN else "still"


def turns(sight: Sight, track: Track) -> float:
    """How far the thing turns about its centre over the clip, in turns, clockwise positive."""
    rings = [_around(sight, track, index) if track.seen[index] else None for index in range(len(track.seen))]
    total, measured = 0.0, 0
    for before, after in zip(rings, rings[_LAG:], strict=False):
        if before is None or after is None:
            continue
        meeting = np.fft.irfft(np.fft.rfft(after) * np.conj(np.fft.rfft(before)), n=_ANGLES).sum(0)
        lags = np.arange(-_FURTHEST_TURN, _FURTHEST_TURN + 1)
        fits = meeting[lags]
        total += lags[fits.argmax()] / _ANGLES / _LAG
        measured += 1
    return total * (len(rings) - 1) / measured if measured else 0.0


def _around(sight: Sight, track: Track, index: int) -> np.ndarray:
    """[radii, angles]: what lies around the thing's centre, without its mean on each circle."""
    radii = _RADII * np.sqrt(track.areas[index]) / 2
    angles = 2 * np.pi * np.arange(_ANGLES) / _ANGLES
    x = (track.centres[index, 0] * SIDE - 0.5 + radii[:, None] * np.cos(angles)).astype(np.float32)
    y = (track.centres[index, 1] * SIDE - 0.5 + radii[:, None] * np.sin(angles)).astype(np.float32)
    picture = np.where(track.masks[index], 0.4 + sight.lab[index, :, :, 0], 0).astype(np.float32)
    found = cv2.remap(cv2.GaussianBlur(picture, (0, 0), 0.7), x, y, cv2.INTER_LINEAR)
    return found - found.mean(1, keepdims=True)
