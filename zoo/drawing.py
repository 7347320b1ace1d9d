"""A scene becomes frames. The same bytes on every machine: only operations that all machines round alike.

Edges are smooth because a pixel takes as much of a colour as the outline's distance says. In pixel art the scene is
drawn on a coarse grid with hard edges, and every point becomes a block.
"""

from __future__ import annotations

import numpy as np

from .dice import Dice
from .facts import BACKGROUNDS, COLOURS, NEW_STYLE, Background, Colour, Scene, Thing
from .motion import Poses, camera_shift, poses, times
from .shapes import OUTLINES, REACH, TEXTURES, wave

PIXEL_ART_BLOCKS = 16  # a side
SHADES: dict[str, Colour] = {"white": (168, 168, 172), "black": (78, 78, 84)}
"""What a texture mixes in; the other colours are darkened."""
_DARKENED = {"striped": 0.36}
_STAR = (236, 236, 220)
_STARS, _STAR_STREAM, _CLOUD_STREAM = 16, 2, 3
_CLOUD_HEIGHT = 16.0  # levels of 255
_SWELLS = ((0.9, 0.3), (0.3, -0.9), (0.7, 0.8), (-0.8, 0.7))  # directions


def render(scene: Scene, *, size: int = 64, frames: int = 17) -> np.ndarray:
    """The clip: [F, H, W, 3] uint8 RGB, `size` pixels a side. The clip shows the whole scene whatever its length."""
    blocky = scene.style == NEW_STYLE
    block = max(size // PIXEL_ART_BLOCKS, 1)
    side = -(-size // block) if blocky else size
    clip = _background(scene, side, frames)
    order = range(len(scene.things)) if scene.relation == "behind" else range(len(scene.things) - 1, -1, -1)
    for index in order:
        _draw(clip, scene.things[index], poses(scene, index, frames=frames), hard=blocky)
    if blocky:
        clip = clip.repeat(block, axis=1).repeat(block, axis=2)[:, :size, :size]
    return np.ascontiguousarray(clip)


def shade(colour: str, texture: str) -> Colour:
    """The second colour of a texture: the same hue, darker."""
    if colour in SHADES:
        return SHADES[colour]
    red, green, blue = COLOURS[colour]
    share = _DARKENED.get(texture, 0.6)
    return round(red * share), round(green * share), round(blue * share)


def _draw(clip: np.ndarray, thing: Thing, where: Poses, *, hard: bool) -> None:
    """Lay one thing over the frames, in a window around it."""
    size = clip.shape[1]
    x, y, radius = (np.float32(values * size)[:, None, None] for values in (where.x, where.y, where.radius))
    cosine, sine = np.float32(where.cosine)[:, None, None], np.float32(where.sine)[:, None, None]
    half = int(np.ceil(radius.max() * REACH)) + 1
    left, top = np.floor(x) - half, np.floor(y) - half
    points = np.arange(2 * half + 1, dtype=np.float32) + np.float32(0.5)
    across, down = (left + points - x) / radius, (top + points[:, None] - y) / radius
    u, v = cosine * across + sine * down, cosine * down - sine * across
    inside = np.float32(0.5) - OUTLINES[thing.shape](u, v) * radius
    alpha = (inside > 0.5) if hard else np.clip(inside, 0, 1)
    paint = np.array(COLOURS[thing.colour], np.float32)
    if thing.texture in TEXTURES:
        share = TEXTURES[thing.texture](u, v)[..., None]
        second = np.array(shade(thing.colour, thing.texture), np.float32)
        paint = paint + (np.round(share) if hard else share) * (second - paint)
    paint = np.broadcast_to(paint, (*alpha.shape, 3))
    for frame, first_row, first_column, cover, colour in zip(
        clip, top.astype(int).ravel(), left.astype(int).ravel(), alpha[..., None], paint, strict=True
    ):
        rows, columns = _visible(first_row, len(points), size), _visible(first_column, len(points), size)
        window = frame[max(first_row, 0) : first_row + rows.stop, max(first_column, 0) : first_column + columns.stop]
        window[:] = _levels(window + cover[rows, columns] * (colour[rows, columns] - window))


def _visible(first: int, length: int, size: int) -> slice:
    """The part of a window of `length` points, beginning at point `first`, that lies in the picture."""
    return slice(max(-first, 0), max(min(length, size - first), 0))


def _levels(values: np.ndarray) -> np.ndarray:
    return np.clip(values + np.float32(0.5), 0, 255).astype(np.uint8)


def _background(scene: Scene, size: int, frames: int) -> np.ndarray:
    """[F, H, W, 3] uint8, writable."""
    ground, time = scene.background, times(frames)
    shift_x, shift_y = camera_shift(scene, time if scene.camera != "still" else time[:1])
    colours = [np.array(BACKGROUNDS[name], np.float32) for name in ground.colours]
    if ground.kind == "gradient":
        share = ((np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size))[:, None]
        line = colours[0] + share * (colours[1] - colours[0])
        picture = line[None, None, :, :] if ground.across else line[None, :, None, :]
    elif ground.kind == "clouds":
        picture = colours[0] + np.float32(_CLOUD_HEIGHT) * _clouds(ground, size, shift_x, shift_y)[..., None]
    elif ground.kind == "stars":
        light = _stars(ground, size, shift_x, shift_y)[..., None]
        picture = colours[0] + light * (np.array(_STAR, np.float32) - colours[0])
    else:
        picture = colours[0]
    return np.broadcast_to(_levels(picture), (frames, size, size, 3)).copy()


def _clouds(ground: Background, size: int, shift_x: np.ndarray, shift_y: np.ndarray) -> np.ndarray:
    """[F, H, W], about -1..1: four broad waves that run in different directions."""
    dice = Dice(ground.seed, stream=_CLOUD_STREAM)
    points = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    x = points[None, None, :] - np.float32(shift_x)[:, None, None]
    y = points[None, :, None] - np.float32(shift_y)[:, None, None]
    total = np.zeros((len(shift_x), size, size), np.float32)
    for number, (along_x, along_y) in enumerate(_SWELLS):
        length = dice.between(0.9, 1.7)
        swell_x, swell_y, begin = (np.float32(value) for value in (along_x * length, along_y * length, dice.share()))
        slope = wave(x * swell_x + y * swell_y + begin)
        total += np.float32(0.4 - 0.06 * number) * slope * (np.float32(1.5) - np.float32(0.5) * slope * slope)
    return total


def _stars(ground: Background, size: int, shift_x: np.ndarray, shift_y: np.ndarray) -> np.ndarray:
    """[F, H, W] 0..1: soft points of light, also outside the first picture, where a pan will find them."""
    dice = Dice(ground.seed, stream=_STAR_STREAM)
    reach = float(max(np.abs(shift_x).max(), np.abs(shift_y).max()))
    count = round(_STARS * (1 + 2 * reach) ** 2)
    facts = np.array([[dice.share() for _ in range(4)] for _ in range(count)])
    place_x, place_y = ((facts[:, axis] * (1 + 2 * reach) - reach) * size for axis in (0, 1))
    x, y = place_x + shift_x[:, None] * size, place_y + shift_y[:, None] * size
    radius, light = (1.5 + 0.8 * facts[:, 2]) * size / 64, 0.55 + 0.4 * facts[:, 3]
    half = int(np.ceil(radius.max()))
    near = np.arange(-half, half + 1)
    columns, rows = np.floor(x)[..., None] + near, np.floor(y)[..., None] + near
    off = ((columns + 0.5 - x[..., None]) ** 2)[..., None, :] + ((rows + 0.5 - y[..., None]) ** 2)[..., :, None]
    glow = np.clip(1 - off / (radius**2)[:, None, None], 0, 1)
    glow = light[:, None, None] * glow * glow
    # one row and one column more on each side take what lies outside
    sky = np.zeros((len(x), size + 2, size + 2))
    column_at = np.broadcast_to(np.clip(columns + 1, 0, size + 1).astype(int)[..., None, :], glow.shape)
    row_at = np.broadcast_to(np.clip(rows + 1, 0, size + 1).astype(int)[..., :, None], glow.shape)
    np.maximum.at(sky, (np.arange(len(x))[:, None, None, None], row_at, column_at), glow)
    return sky[:, 1:-1, 1:-1].astype(np.float32)
