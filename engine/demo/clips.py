"""A small dataset of real mp4 files with captions, drawn on the spot: simple shapes that move.

Sizes, lengths and frame rates differ on purpose, because people's clips do. Everything follows from the list of
scenes: the same scenes give the same frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..contract.files import write_text
from ..media.writing import write_video

COLOURS = {
    "red": (226, 61, 53),
    "orange": (240, 150, 40),
    "yellow": (245, 214, 70),
    "green": (72, 176, 92),
    "teal": (46, 170, 170),
    "blue": (58, 108, 214),
    "purple": (142, 84, 196),
    "white": (240, 240, 236),
}
BACKDROPS = {
    "night": ((18, 22, 40), (48, 56, 92)),
    "sand": ((214, 196, 160), (240, 226, 196)),
    "mist": ((150, 162, 172), (206, 214, 220)),
}
MOVES = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}
SUPERSAMPLING = 2


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One clip: what is drawn and how the file is written. `width`, `height` in pixels, `length` in frames."""

    shape: str
    colour: str
    backdrop: str
    move: str
    width: int
    height: int
    fps: float
    length: int

    @property
    def name(self) -> str:
        return f"{self.colour}_{self.shape}_{self.move}"

    @property
    def caption(self) -> str:
        return f"a {self.colour} {self.shape} moves {self.move} in front of a {self.backdrop} background"


SCENES = (
    Scene(shape="circle", colour="red", backdrop="night", move="right", width=192, height=128, fps=16, length=33),
    Scene(shape="square", colour="blue", backdrop="sand", move="left", width=256, height=144, fps=24, length=50),
    Scene(shape="triangle", colour="green", backdrop="mist", move="up", width=128, height=192, fps=30, length=64),
    Scene(shape="star", colour="yellow", backdrop="night", move="down", width=160, height=160, fps=25, length=45),
    Scene(
        shape="hexagon",
        colour="purple",
        backdrop="sand",
        move="right",
        width=320,
        height=180,
        fps=30000 / 1001,
        length=72,
    ),
    Scene(shape="circle", colour="teal", backdrop="mist", move="left", width=176, height=144, fps=12, length=25),
)


def outline(shape: str, centre: tuple[float, float], radius: float) -> list[tuple[float, float]]:
    """The corners of a regular shape around `centre`, in pixels; "circle" comes as many corners."""
    corners = {"circle": 48, "square": 4, "triangle": 3, "hexagon": 6, "star": 10}[shape]
    turn = math.pi / 4 if shape == "square" else -math.pi / 2
    points = []
    for index in range(corners):
        reach = radius * (0.45 if shape == "star" and index % 2 else 1.0)
        angle = turn + 2 * math.pi * index / corners
        points.append((centre[0] + reach * math.cos(angle), centre[1] + reach * math.sin(angle)))
    return points


def backdrop(name: str, width: int, height: int) -> Image.Image:
    """A vertical gradient, RGB."""
    top, bottom = (np.asarray(colour, dtype=np.float32) for colour in BACKDROPS[name])
    rows = np.linspace(0.0, 1.0, height, dtype=np.float32)[:, None]
    column = (top * (1 - rows) + bottom * rows).round().astype(np.uint8)
    return Image.fromarray(np.repeat(column[:, None, :], width, axis=1))


def frames(scene: Scene) -> Iterator[np.ndarray]:
    """The clip, frame by frame: HWC, 0..255 uint8 RGB. The shape crosses the picture once."""
    width, height = scene.width * SUPERSAMPLING, scene.height * SUPERSAMPLING
    scenery = backdrop(scene.backdrop, width, height)
    radius = min(width, height) * 0.22
    along_x, along_y = MOVES[scene.move]
    for index in range(scene.length):
        way = index / max(scene.length - 1, 1) - 0.5
        centre = (width * (0.5 + 0.6 * way * along_x), height * (0.5 + 0.6 * way * along_y))
        picture = scenery.copy()
        ImageDraw.Draw(picture).polygon(outline(scene.shape, centre, radius), fill=COLOURS[scene.colour])
        yield np.asarray(picture.resize((scene.width, scene.height), Image.Resampling.BOX))


def write_clips(folder: Path, scenes: tuple[Scene, ...] = SCENES) -> list[Path]:
    """Draw every scene to `<name>.mp4` (H.264) with its caption in `<name>.txt`; returns the video paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for scene in scenes:
        path = folder / f"{scene.name}.mp4"
        write_video(path, frames(scene), fps=scene.fps)
        write_text(path.with_suffix(".txt"), scene.caption + "\n")
        paths.append(path)
    return paths
