"""Says whether a clip shows what its caption says: the subject's colour, shape, motion and texture, each for itself.

Colour and motion are measured, shape and texture named by a tiny network that was trained on drawn clips; what it calls
stripes has to run one way. The judge is independent of what made the clip, and of the caption but for one thing: where
there are two things, the one of the caption's colour is looked at. Given up: backgrounds, sizes, speeds, and what a
second thing does.

    python -m zoo.judge FOLDER_OF_MP4          a table; captions stand beside the videos, in <name>.txt
    python -m zoo.judge --validate 1000        asks it about drawn clips whose facts are known
    python -m zoo.judge --train                trains its network anew
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.contract.errors import DataError, EngineError, as_failed
from engine.media.video import read_frames
from engine.screen import Screen

from .captions import read_caption
from .facts import CONCEPTS, NEW_MOTIONS, NEW_SHAPE, NEW_TEXTURE, Facts
from .moving import seen_motion
from .pixel_art import is_pixel_art
from .seeing import Sight, follow, look
from .shape_net import crops, name_crops, trained_net
from .stripes import are_stripes


@dataclass(frozen=True)
class Seen:
    """What a clip shows of one thing. `colours` are those of all things, the most frequent first; `motion` and
    `texture` are empty where none can be told."""

    colours: tuple[str, ...]
    shape: str
    texture: str
    motion: str


@dataclass(frozen=True)
class Verdict:
    """Whether the clip shows each fact of a caption, and what it shows."""

    colour: bool
    shape: bool
    motion: bool
    texture: bool
    seen: Seen

    @property
    def all(self) -> bool:
        """Colour, shape and motion: what the models were made to get right, and every score counts."""
        return self.colour and self.shape and self.motion


def judge(clip: np.ndarray, facts: Facts) -> Verdict:
    """Compare a clip, [F, H, W, 3] uint8 RGB, at least 64 pixels a side, with a caption's facts.

    The motion is the one in the picture: what stays while the camera pans left has to go right.
    """
    seen = _thing(look(clip), facts.colour)
    return Verdict(
        colour=facts.colour in seen.colours,
        shape=facts.shape == seen.shape,
        motion=facts.seen_motion == seen.motion,
        texture=facts.texture == seen.texture,
        seen=seen,
    )


def shares(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """The share (0..1) of clips that show each fact: `colour`, `shape`, `motion`, `all` of these, and `texture`."""
    verdicts = list(verdicts)
    return {
        fact: sum(getattr(verdict, fact) for verdict in verdicts) / len(verdicts)
        for fact in ("colour", "shape", "motion", "all", "texture")
    }


def shows_concept(name: str, clip: np.ndarray) -> bool:
    """Whether any thing in the clip shows one of the `CONCEPTS`. ValueError for another name."""
    if name not in CONCEPTS:
        raise ValueError(f"There is no concept {name!r}. There are: {', '.join(CONCEPTS)}.")
    return name in concepts(clip)


def concepts(clip: np.ndarray) -> tuple[str, ...]:
    """The concepts that a clip shows."""
    sight = look(clip)
    things = [_thing(sight, colour) for colour in sight.present]
    found = {
        "striped_hexagon": any(thing.shape == NEW_SHAPE and thing.texture == NEW_TEXTURE for thing in things),
        "zigzag": any(thing.motion in NEW_MOTIONS for thing in things),
        "pixel_art": is_pixel_art(sight),
    }
    return tuple(name for name in CONCEPTS if found[name])


def _thing(sight: Sight, colour: str) -> Seen:
    """The thing of this colour; the largest if there is none of it."""
    track = follow(sight, colour)
    pictures = crops(sight, track)
    shape, texture = name_crops(trained_net(), pictures)
    if texture == NEW_TEXTURE and not are_stripes(pictures):
        texture = ""
    return Seen(sight.present, shape, texture, seen_motion(sight, track))


def table(folder: Path) -> str:
    """A line for each .mp4 of a folder with a caption beside it, and the shares at the end.

    DataError for what cannot be read.
    """
    lines, verdicts = [f"{'video':<28} colour shape  motion texture seen"], []
    for path in sorted(folder.glob("*.mp4")):
        beside = path.with_suffix(".txt")
        if not beside.is_file():
            raise DataError(f"{path} has no caption.", hint=f"Write what it shows into {beside.name}.")
        clip = np.stack(list(read_frames(path)))
        verdict = judge(clip, read_caption(beside.read_text(encoding="utf-8")))
        verdicts.append(verdict)
        lines.append(_line(path.stem, verdict, concepts(clip)))
    if not verdicts:
        raise DataError(f"{folder} holds no .mp4.", hint="Name a folder of videos with captions in .txt beside them.")
    lines.append("  ".join(f"{fact} {share:.1%}" for fact, share in shares(verdicts).items()))
    return "\n".join(lines)


def _line(name: str, verdict: Verdict, also: tuple[str, ...]) -> str:
    said = (verdict.colour, verdict.shape, verdict.motion, verdict.texture)
    marks = [f"{'yes' if fact else 'NO':<6}" for fact in said]
    seen = verdict.seen
    looks = "+".join(seen.colours) or "no colour", seen.texture or "no texture", seen.shape
    shown = [*looks, seen.motion or "lost", *also]
    return f"{name:<28.28} {' '.join(marks)}  {', '.join(shown)}"


def main(words: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, the engine's."""
    parser = argparse.ArgumentParser(prog="python -m zoo.judge", description="Does a clip show what its caption says?")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("folder", type=Path, nargs="?", help="a folder of .mp4 files with captions in .txt beside them")
    what.add_argument("--train", action="store_true", help="draw clips and train the judge's network anew (minutes)")
    what.add_argument("--validate", type=int, metavar="N", help="ask it about N drawn clips whose facts are known")
    chosen = parser.parse_args(words)
    screen = Screen()
    try:
        if chosen.train:
            from .judge_training import train

            told = str(train(say=screen.show))
        elif chosen.validate:
            from .judge_validation import report

            told = report(chosen.validate, say=screen.show)
        else:
            told = table(chosen.folder)
    except EngineError as error:
        event, status = as_failed(error)
        screen.show(event)
        return status
    sys.stdout.write(f"{told}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
