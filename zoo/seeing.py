"""Finds the things in a clip, whoever made it: what stands out from the background, in which colours, where, how large.

Plain measurements. The background is a smooth surface that is fitted to each frame so that what stands out does not
bend it; every pixel that differs is given the name of the colour that it is nearest to. Knows nothing of captions.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .drawing import SHADES
from .facts import COLOURS
from .palette import oklab

SIDE = 64  # pixels a side at which everything is measured
_DIFFERENT = 0.1  # OKLab; from here on a pixel is not background
_BORDER, _FIT_ROUNDS, _FIT_SCALE = 0.8, 8, 0.05  # the fit begins with what lies outside this share of the picture
_SMALLEST_THING = 40  # pixels
_SHARE_OF_A_COLOUR = 0.2  # of the pixels of the most frequent one, that make it a thing's colour
_FEWEST_VOTES = 8  # pixels a frame
_TONES, _SHADED = (1.0, 0.8, 0.6, 0.4), 0.6  # shares of a colour's light in textures; the shade that most textures have
_MAIN_TONES = 2  # of those, the ones that a thing has unless it is textured


@dataclass(frozen=True)
class Sight:
    """What was found, frame by frame.

    `different` [F, H, W] float32: how far a pixel is from the background (OKLab). `named` [F, H, W] int: the index of
    the thing's colour in COLOURS, -1 where there is background. `present`: names of the colours that things have, the
    most frequent first. `lab` [F, H, W, 3]: the clip in OKLab.
    """

    lab: np.ndarray
    different: np.ndarray
    named: np.ndarray
    present: tuple[str, ...]


@dataclass(frozen=True)
class Track:
    """One thing through the clip: `masks` [F, H, W] bool, and where there is one (`seen` [F] bool) its centre [F, 2]
    as shares of the picture (x, y) and its area [F] in pixels."""

    masks: np.ndarray
    seen: np.ndarray
    centres: np.ndarray
    areas: np.ndarray


def look(clip: np.ndarray) -> Sight:
    """See what is in a clip: [F, H, W, 3] uint8 RGB of any size."""
    if clip.shape[1:3] != (SIDE, SIDE):
        clip = np.stack([cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for frame in clip])
    lab = oklab(clip)
    different = np.sqrt(((lab - _surface(lab)) ** 2).sum(-1))
    things = np.stack([_large_parts(mask) for mask in different > _DIFFERENT])
    nearest, tone = _nearest(lab[np.stack([_without_rim(mask) for mask in things])], list(range(len(COLOURS))))
    votes = np.bincount(nearest[tone < _MAIN_TONES], minlength=len(COLOURS))
    enough = max(votes.max() * _SHARE_OF_A_COLOUR, _FEWEST_VOTES * len(clip))
    order = [int(index) for index in np.argsort(-votes) if votes[index] >= enough]
    named = np.full(different.shape, -1)
    if order:
        named[things] = _nearest(lab[things], order)[0]
    return Sight(lab, different, named, tuple(tuple(COLOURS)[index] for index in order))


def follow(sight: Sight, colour: str | None = None) -> Track:
    """The thing of this colour, or the largest thing of any colour when there is none of it."""
    standing_out = sight.named >= 0
    if colour in sight.present:
        standing_out = sight.named == tuple(COLOURS).index(colour)
    masks = np.stack([_largest(mask) for mask in standing_out])
    areas = masks.sum((1, 2)).astype(np.float64)
    grid = (np.arange(SIDE) + 0.5) / SIDE
    weights = np.maximum(areas, 1)
    centres = np.stack([(masks.sum(1) * grid).sum(1) / weights, (masks.sum(2) * grid).sum(1) / weights], axis=1)
    return Track(masks, areas >= _SMALLEST_THING, centres, areas)


def _surface(lab: np.ndarray) -> np.ndarray:
    """[F, H, W, 3]: the background of each frame, a polynomial surface of the third degree, fitted robustly."""
    frames = len(lab)
    y, x = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE), indexing="ij")
    terms = np.stack([x**i * y**j for i in range(4) for j in range(4 - i)], axis=-1).astype(np.float32)
    # every other pixel is enough to fit to
    some, values = terms[::2, ::2].reshape(-1, terms.shape[-1]), lab[:, ::2, ::2].reshape(frames, -1, 3)
    products = (some[:, :, None] * some[:, None, :]).reshape(len(some), -1)
    border = np.maximum(np.abs(x), np.abs(y))[::2, ::2].ravel() > _BORDER
    weights = np.broadcast_to(border.astype(np.float32), values.shape[:2])
    steady = np.float32(1e-3) * np.eye(some.shape[1], dtype=np.float32)
    for round_ in range(_FIT_ROUNDS):
        matrix = (weights @ products).reshape(frames, *steady.shape) + steady
        factors = np.linalg.solve(matrix, some.T @ (weights[..., None] * values))
        off = ((values - some @ factors) ** 2).sum(-1)
        weights = 1 / (1 + off / (_FIT_SCALE * max(3 - round_, 1)) ** 2) ** 2
    return (terms.reshape(-1, terms.shape[-1]) @ factors).reshape(lab.shape)


def _tones(colour: str) -> np.ndarray:
    """[tones, 3] uint8: the colour, and what textures make of it."""
    first = np.array(COLOURS[colour], np.float64)
    if colour in SHADES:
        shares = np.minimum((1 - np.array(_TONES)) / (1 - _SHADED), 1)[:, None]
        return (first + shares * (np.array(SHADES[colour]) - first)).round().astype(np.uint8)
    return (np.array(_TONES)[:, None] * first).round().astype(np.uint8)


_PROTOTYPES = oklab(np.stack([_tones(colour) for colour in COLOURS]))  # [colours, tones, 3]


def _nearest(lab: np.ndarray, colours: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """For pixels [N, 3], which of these colours (indices in COLOURS) is nearest, and in which tone: [N], [N]."""
    prototypes = _PROTOTYPES[colours].reshape(-1, 3)
    squares = (prototypes**2).sum(1) - 2 * lab @ prototypes.T
    nearest = squares.argmin(1)
    return np.array(colours, np.int64)[nearest // len(_TONES)], nearest % len(_TONES)


def _large_parts(mask: np.ndarray) -> np.ndarray:
    """[H, W] bool without the parts that are too small for a thing: stars, specks."""
    count, parts, figures, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    large = figures[:, cv2.CC_STAT_AREA] >= _SMALLEST_THING
    large[0] = False
    return large[parts]


def _largest(mask: np.ndarray) -> np.ndarray:
    """[H, W] bool: the largest part alone."""
    _, parts, figures, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    if len(figures) == 1:
        return mask
    return parts == 1 + figures[1:, cv2.CC_STAT_AREA].argmax()


def _without_rim(mask: np.ndarray) -> np.ndarray:
    """[H, W] bool without the pixels at its edge, which are a mixture."""
    return cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
