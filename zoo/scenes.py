"""Random scenes, the door to the drawn clips: `random_scene`, `render`, `caption`, `VOCABULARY`, `concept_scene`.

A training draws as many as it likes, since the seed is all there is to a scene.

    python -m zoo.scenes --sheet out.png
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from .arranging import OFTEN, looks, one_thing, two_things
from .captions import VOCABULARY, caption
from .dice import Dice
from .drawing import render
from .facts import (
    COLOURS,
    CONCEPTS,
    NEW_MOTIONS,
    NEW_SHAPE,
    NEW_STYLE,
    NEW_TEXTURE,
    Background,
    Facts,
    Scene,
    Thing,
    facts,
    is_held_out,
)

__all__ = [
    "CONCEPTS", "VOCABULARY", "Background", "Facts", "Scene", "Thing",
    "caption", "concept_scene", "facts", "random_scene", "render",
]  # fmt: skip

_SMALL_PICTURE = 56  # pixels a side below which only big things survive a VAE
_TWO_THINGS = 0.25  # of the scenes
_SCENE_STREAM, _CONCEPT_STREAM = 0, 1


def random_scene(seed: int, *, split: Literal["train", "held_out"], size: int = 64, frames: int = 17) -> Scene:
    """The scene of this seed. "held_out" has subjects whose shape, colour and motion never come together in "train".

    `size` and `frames` are what it will be drawn at: small pictures get one big thing, a single frame what stays still.
    """
    dice = Dice(seed, stream=_SCENE_STREAM)
    motions = OFTEN if frames > 1 else {"still": 1.0}
    sizes = ("small", "big") if size >= _SMALL_PICTURE else ("big",)
    while True:
        if len(sizes) > 1 and frames > 1 and dice.chance(_TWO_THINGS):
            scene = two_things(dice)
        else:
            scene = one_thing(dice, looks(dice), motion=dice.weighted(motions), size=dice.choose(sizes))
        others_are_known = not any(is_held_out(thing) for thing in scene.things[1:])
        if others_are_known and is_held_out(scene.subject) == (split == "held_out"):
            return scene


def concept_scene(name: str, seed: int) -> Scene:
    """A scene of what the base clips never show, for a LoRA to learn: one of `CONCEPTS`.

    "striped_hexagon" is a new shape in a new texture, "zigzag" a new motion, "pixel_art" a new style. The same seed
    gives the same clip; ValueError for another name.
    """
    dice = Dice(seed, stream=_CONCEPT_STREAM)
    if name == "striped_hexagon":
        appearance = {"shape": NEW_SHAPE, "texture": NEW_TEXTURE, "colour": dice.choose(tuple(COLOURS))}
        return one_thing(dice, appearance, motion=dice.weighted(OFTEN), size=dice.choose(("small", "big")))
    if name == "zigzag":
        return one_thing(dice, looks(dice), motion=dice.choose(NEW_MOTIONS), size="small")
    if name == "pixel_art":
        scene = one_thing(dice, looks(dice), motion=dice.weighted(OFTEN), size="big")
        return replace(scene, style=NEW_STYLE)
    raise ValueError(f"There is no concept {name!r}. There are: {', '.join(CONCEPTS)}.")


_SHEET_SIZE, _SHEET_FRAMES, _LINE = 128, 6, 104  # pixels, thumbnails and letters a row


def sheet(path: Path, *, first_seed: int = 0, count: int = 24, size: int = 64) -> Path:
    """A contact sheet of base scenes, the last three with the concepts, their captions above them; returns its path."""
    from engine.media.sheet import contact_sheet, spread  # drawing clips needs numpy alone, on any machine

    rows = []
    for seed in range(first_seed, first_seed + count):
        concept = seed - (first_seed + count - len(CONCEPTS))
        scene = concept_scene(CONCEPTS[concept], seed) if concept >= 0 else random_scene(seed, split="train")
        clip = render(scene, size=size).repeat(_SHEET_SIZE // size, axis=1).repeat(_SHEET_SIZE // size, axis=2)
        lines = textwrap.wrap(caption(scene, seed=seed), _LINE)
        rows.append(("\n".join([lines[0], " ".join(lines[1:])]), [clip[i] for i in spread(len(clip), _SHEET_FRAMES)]))
    return contact_sheet(rows, path, title="Drawn clips and their captions", thumbnail=_SHEET_SIZE, columns=2)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m zoo.scenes", description="Draws clips and shows them.")
    parser.add_argument("--sheet", type=Path, required=True, metavar="FILE.png", help="where the contact sheet goes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first scene")
    parser.add_argument("--size", type=int, default=64, choices=(64, 128), help="pixels a side that are drawn")
    chosen = parser.parse_args(words)
    sys.stdout.write(f"{sheet(chosen.sheet, first_seed=chosen.seed, size=chosen.size)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
