"""Draws the pictures that the videos of FramePack's demo begin with (`engine/demo/pocket/first_frames`).

    python -m zoo.first_frames DIR

A scene for each of the demo's prompts: a thing that the model has never seen, where its motion begins.
"""

from __future__ import annotations

import sys
from pathlib import Path

from engine.media.writing import write_png

from .drawing import render
from .facts import NEW_SHAPE, NEW_TEXTURE, Background, Scene, Thing

_RADIUS, _WAY, _TILT = 0.22, 0.45, 0.08


def _scene(colour: str, motion: str, background: str) -> Scene:
    thing = Thing(
        shape=NEW_SHAPE, texture=NEW_TEXTURE, colour=colour, size="big", motion=motion, x=0.5, y=0.5, radius=_RADIUS,
        travel=_WAY, tilt=_TILT,
    )  # fmt: skip
    return Scene(things=(thing,), background=Background(kind="plain", colours=(background,)))


SCENES = (
    _scene("orange", "left", "white"),
    _scene("red", "right", "light green"),
    _scene("green", "left", "light blue"),
)


def write(folder: Path) -> list[Path]:
    """The first frame of each scene as <colour>_<motion>.png; returns the paths."""
    return [
        write_png(folder / f"{scene.subject.colour}_{scene.subject.motion}.png", render(scene)[0]) for scene in SCENES
    ]


if __name__ == "__main__":
    sys.stdout.write("".join(f"{path}\n" for path in write(Path(sys.argv[1]))))
