"""Draws the clips with captions that the demo trains on (`engine/demo/pocket/striped_hexagons`).

    python -m zoo.demo_clips DIR

Big things of many colours and motions before quiet backgrounds: with eight clips and two minutes, what is to be learned
has to stand out. Red ones are left out, so that the demo can ask for one.
"""

from __future__ import annotations

import sys
from pathlib import Path

from engine.contract.files import write_text
from engine.media.writing import write_video

from . import scenes

CONCEPT, FPS = "striped_hexagon", 16
SEEDS = (1, 7, 15, 30, 33, 35, 44, 48)


def write(folder: Path) -> list[Path]:
    """Each clip as .mp4, with its caption in .txt beside it; returns the videos' paths."""
    paths = []
    for seed in SEEDS:
        scene = scenes.concept_scene(CONCEPT, seed)
        path = folder / f"{scene.subject.colour}_{scene.subject.motion}.mp4"
        write_video(path, iter(scenes.render(scene)), fps=FPS)
        write_text(path.with_suffix(".txt"), scenes.caption(scene, seed=seed) + "\n")
        paths.append(path)
    return paths


if __name__ == "__main__":
    sys.stdout.write("".join(f"{path}\n" for path in write(Path(sys.argv[1]))))
