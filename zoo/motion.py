"""Where a thing is at each moment: its centre, its radius and its turn.

Values are rounded to a fine grid (`_GRID`), so that the last bits of a machine's sine do not reach the picture.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .facts import STEPS, Scene, Thing

ZIGZAGS = 2  # to and fro
ZIGZAG_SWAY = 0.11  # share of the picture, to either side
_BOUNCES = 2
_GRID = 2.0**16


class Poses(NamedTuple):
    """Arrays [F], float64: the centre and the radius in shares of the picture, and the turn as cosine and sine."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    cosine: np.ndarray
    sine: np.ndarray


def times(frames: int) -> np.ndarray:
    """[F] from 0 to 1; a single frame is the middle of the clip."""
    return np.linspace(0.0, 1.0, frames) if frames > 1 else np.array([0.5])


def poses(scene: Scene, index: int, *, frames: int) -> Poses:
    """The poses of `scene.things[index]`, with what the camera does to them."""
    thing, time = scene.things[index], times(frames)
    x, y = _centre(thing, time)
    x, y = x + camera_shift(scene, time)[0], y + camera_shift(scene, time)[1]
    angle = 2 * np.pi * (thing.tilt + (thing.sense * thing.travel * time if thing.motion == "spin" else 0 * time))
    return Poses(*map(_rounded, (x, y, _radius(thing, time), np.cos(angle), np.sin(angle))))


def camera_shift(scene: Scene, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far the pan has moved the picture's content at each moment: [F], [F], 0 in the middle of the clip."""
    step_x, step_y = STEPS.get(scene.camera, (0, 0))
    way = _rounded(-scene.pan * (time - 0.5))
    return step_x * way, step_y * way


def _centre(thing: Thing, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.full_like(time, thing.x), np.full_like(time, thing.y)
    way = thing.travel * (time - 0.5)
    if thing.motion in STEPS:
        step_x, step_y = STEPS[thing.motion]
        return x + step_x * way, y + step_y * way
    if thing.motion == "bounce":
        fall = (_BOUNCES * time + 0.5) % 1.0
        return x, y + thing.travel * (0.5 - 4 * fall * (1 - fall))
    if thing.motion == "swing":
        return x - thing.sense * thing.travel / 2 * np.cos(2 * np.pi * time), y
    if thing.motion == "orbit":
        angle = 2 * np.pi * (thing.sense * time + thing.phase)
        return x + thing.travel * np.cos(angle), y + thing.travel * np.sin(angle)
    if thing.motion.startswith("zigzag"):
        step_x, step_y = STEPS[thing.motion.removeprefix("zigzag ")]
        sway = thing.sense * ZIGZAG_SWAY * (4 * np.abs((ZIGZAGS * time + 0.25) % 1.0 - 0.5) - 1)
        return x + step_x * way + abs(step_y) * sway, y + step_y * way + abs(step_x) * sway
    return x, y


def _radius(thing: Thing, time: np.ndarray) -> np.ndarray:
    if thing.motion == "grow":
        return thing.radius * (thing.travel + (1 - thing.travel) * time)
    if thing.motion == "shrink":
        return thing.radius * (1 - (1 - thing.travel) * time)
    return np.full_like(time, thing.radius)


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.round(values * _GRID) / _GRID
