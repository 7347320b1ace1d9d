"""How far the judge can be trusted: it is asked about drawn clips whose facts are known, and about wrong ones.

The clips are of the held-out split, which neither a model nor the judge's network was trained on. For every true
caption that it should confirm there is one with a wrong colour, a wrong shape, a wrong motion and a wrong texture,
each of which it should deny.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from engine.contract.events import Meter, Say

from .degrading import degrade, psnr
from .dice import Dice
from .facts import COLOURS, CONCEPTS, MOTIONS, NEW_MOTIONS, NEW_TEXTURE, SHAPES, STEPS, TEXTURES, Facts, Scene, facts
from .judge import Verdict, concepts, judge
from .scenes import concept_scene, random_scene, render

_FIRST_SEED, _STREAM = 9_000_000, 5
_TEXTURES = (*TEXTURES, NEW_TEXTURE)
Change = Callable[[np.ndarray, int], np.ndarray]  # a clip and its number to the clip that is judged


def as_drawn(clip: np.ndarray, number: int) -> np.ndarray:
    """The clip as it is."""
    return clip


def as_generated(clip: np.ndarray, number: int) -> np.ndarray:
    """The clip as poor as a small model makes it; see `degrading`."""
    return degrade(clip, seed=number)


def agreement(count: int, *, change: Change = as_drawn, say: Say = lambda event: None) -> dict[str, float]:
    """Shares (0..1) over `count` held-out clips: `colour yes` (confirmed where true), `colour no` (denied where wrong),
    so for shape, motion and texture; and `psnr`, the mean in dB."""
    rows, ratios = [], []
    meter = Meter(say, total=count, unit="clips", label="judging")
    for number in range(count):
        scene = random_scene(_FIRST_SEED + number, split="held_out")
        drawn = render(scene)
        clip = change(drawn, number)
        true, wrong = facts(scene), wrong_facts(scene, Dice(number, stream=_STREAM))
        rows.append(_row(clip, true, wrong))
        if not np.array_equal(clip, drawn):
            ratios.append(psnr(drawn, clip))
        meter.advance()
    meter.close()
    found = {name: sum(row[name] for row in rows) / count for name in rows[0]}
    return found | ({"psnr": float(np.mean(ratios))} if ratios else {})


def concept_agreement(
    count: int, *, change: Change = as_drawn, say: Say = lambda event: None
) -> dict[str, tuple[float, float]]:
    """For each concept the share (0..1) of its own clips in which it is seen, and of base clips in which it is."""
    seen = dict.fromkeys(CONCEPTS, 0)
    falsely = dict.fromkeys(CONCEPTS, 0)
    meter = Meter(say, total=count * (len(CONCEPTS) + 1), unit="clips", label="looking for concepts")
    for number in range(count):
        for name in CONCEPTS:
            seen[name] += name in concepts(change(render(concept_scene(name, _FIRST_SEED + number)), number))
            meter.advance()
        for name in concepts(change(render(random_scene(_FIRST_SEED + number, split="train")), number)):
            falsely[name] += 1
        meter.advance()
    meter.close()
    return {name: (seen[name] / count, falsely[name] / count) for name in CONCEPTS}


def wrong_facts(scene: Scene, dice: Dice) -> dict[str, Facts]:
    """The scene's facts with one of them wrong: `colour`, `shape`, `motion`, `texture`. No thing in the scene
    has that colour."""
    true = facts(scene)
    shown = {thing.colour for thing in scene.things}
    return {
        "colour": replace(true, colour=dice.choose([name for name in COLOURS if name not in shown])),
        "shape": replace(true, shape=dice.choose([name for name in SHAPES if name != true.shape])),
        "motion": replace(true, motion=dice.choose(_other_motions(true.seen_motion)), camera="still"),
        "texture": replace(true, texture=dice.choose([name for name in _TEXTURES if name != true.texture])),
    }


def _other_motions(motion: str) -> list[str]:
    """Directions are mostly mistaken for other directions, so they come more often."""
    others = [name for name in (*MOTIONS, *NEW_MOTIONS) if name != motion]
    return others + 2 * [name for name in STEPS if name != motion and motion in STEPS]


def _row(clip: np.ndarray, true: Facts, wrong: dict[str, Facts]) -> dict[str, bool]:
    verdict: Verdict = judge(clip, true)
    row = {f"{fact} yes": getattr(verdict, fact) for fact in wrong}
    # a wrong shape, motion or texture leaves the thing that is looked at the same, so the clip need not be seen again
    row["colour no"] = wrong["colour"].colour not in verdict.seen.colours
    row["shape no"] = wrong["shape"].shape != verdict.seen.shape
    row["motion no"] = wrong["motion"].seen_motion != verdict.seen.motion
    row["texture no"] = wrong["texture"].texture != verdict.seen.texture
    return row


def report(count: int, *, say: Say = lambda event: None) -> str:
    """The figures as a table, for clips as drawn and as generated."""
    lines = []
    for change in (as_drawn, as_generated):
        found = agreement(count, change=change, say=say)
        quality = f", PSNR {found.pop('psnr'):.1f} dB" if "psnr" in found else ""
        lines.append(f"{count} held-out clips {change.__name__.replace('_', ' ')}{quality}")
        lines += [f"  {name:<12} {share:.1%}" for name, share in sorted(found.items())]
        concept = concept_agreement(count // 2, change=change, say=say)
        lines += [f"  {name:<16} seen {own:.1%}, falsely {base:.1%}" for name, (own, base) in concept.items()]
    return "\n".join(lines)
