"""Chance arranges things in a picture, so that all stay whole, in it, and can be told from what is behind them.

Nothing leaves the picture, and two things touch only where the relation says that one passes the other. Knows nothing
of the seeds' splits, of pixels or of words.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .dice import Dice
from .drawing import shade
from .facts import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    NEW_MOTIONS,
    NIGHTS,
    OPPOSITE,
    ROUND,
    SHAPES,
    STEPS,
    Background,
    Colour,
    Scene,
    Thing,
)
from .motion import ZIGZAG_SWAY
from .palette import distance
from .shapes import REACH

Known = dict[str, Any]  # some of the values that a Thing is made of
OFTEN = {motion: 0.7 if " " in motion else 1.4 if motion in (*STEPS, "still") else 1.0 for motion in MOTIONS}
"""How often each motion comes."""
_MARGIN = 0.02  # of the picture, that stays free around a thing
_CONTRAST, _SHADE_CONTRAST = 0.19, 0.13  # OKLab: of a thing's two colours with its background, and of two things
_RADII = {"small": (0.138, 0.158), "big": (0.21, 0.24)}
_LENGTHS = {"slow": (0.18, 0.23), "medium": (0.29, 0.35), "fast": (0.46, 0.55)}
_DIAGONAL = 0.8  # of those, in x and in y
_PLAY = {
    "bounce": (0.3, 0.38), "swing": (0.32, 0.38), "orbit": (0.18, 0.2), "spin": (0.32, 0.5),
    "grow": (0.5, 0.58), "shrink": (0.5, 0.58), **dict.fromkeys(NEW_MOTIONS, (0.5, 0.56)),
}  # fmt: skip
_IN_PLACE = ("still", "spin", "grow", "shrink")
_PAN, _PANNED = (0.24, 0.34), 0.25  # its length, and how often the camera pans over what stays in its place
_TEXTURED = {"plain": 0.55, "checkered": 0.15, "dotted": 0.15, "gradient": 0.15}
_GROUNDS = {"plain": 0.44, "gradient": 0.2, "clouds": 0.18, "stars": 0.18}
_DAYS = tuple(name for name in BACKGROUNDS if name.startswith("light") or name == "white")

_RADIUS_OF_TWO = (0.125, 0.145)
_APART = (0.225, 0.25)  # of each from the middle
_CROSSING = (0.57, 0.61)  # the way of who passes: from one side of the other to beyond it
_ROUND = (0.29, 0.305)  # the radius of the way around another
_RELATIONS = {"beside": 0.5, "crossing": 0.3, "around": 0.2}


def looks(dice: Dice) -> Known:
    """A shape, colour and texture of the base clips."""
    texture = dice.weighted(_TEXTURED)
    return {"shape": dice.choose(SHAPES), "colour": dice.choose(tuple(COLOURS)), "texture": texture}


def one_thing(dice: Dice, appearance: Known, *, motion: str, size: str) -> Scene:
    """A thing alone, anywhere. The camera may pan over it if it keeps its place."""
    if motion == "spin" and appearance["shape"] in ROUND:
        motion = "still"
    if motion in ("grow", "shrink"):
        size = "big"
    radius = dice.between(*_RADII[size])
    speed, travel = _travel(dice, motion, size)
    camera, pan = "still", 0.0
    if motion in _IN_PLACE and dice.chance(_PANNED):
        camera, pan = dice.choose(tuple(OPPOSITE)), dice.between(*_PAN)
    width, height = _extent(motion, travel)
    pan_x, pan_y = (pan * abs(step) for step in STEPS.get(camera, (0, 0)))
    thing = Thing(
        **appearance, size=size, motion=motion, speed=speed, radius=radius, travel=travel,
        x=_place(dice, radius, width + pan_x), y=_place(dice, radius, height + pan_y),
        sense=dice.choose((-1, 1)), phase=dice.share(), tilt=_tilt(dice, motion),
    )  # fmt: skip
    return Scene(things=(thing,), camera=camera, pan=pan, background=_background(dice, (thing,), camera))


def two_things(dice: Dice) -> Scene:
    """The subject and another thing of another colour: side by side, one passing the other, or one around the other."""
    mine, others = looks(dice), looks(dice)
    while distance(COLOURS[mine["colour"]], COLOURS[others["colour"]]) < _CONTRAST:
        others = looks(dice)
    kind = dice.weighted(_RELATIONS)
    relation, subject, other = {"beside": _beside, "crossing": _crossing, "around": _around}[kind](dice)
    things = (_small(dice, mine, **subject), _small(dice, others, **other))
    return Scene(things=things, relation=relation, background=_background(dice, things, "still"))


def elsewhere(scene: Scene, dice: Dice) -> Scene:
    """The same things doing the same before another background."""
    return replace(scene, background=_background(dice, scene.things, scene.camera))


def _travel(dice: Dice, motion: str, size: str) -> tuple[str, float]:
    """A speed and the length that goes with it. A big thing has no room to be fast."""
    if motion in STEPS:
        speed = dice.choose(("slow", "medium", "fast") if size == "small" else ("slow", "medium"))
        return speed, dice.between(*_LENGTHS[speed]) * (_DIAGONAL if " " in motion else 1)
    return "medium", dice.between(*_PLAY[motion]) if motion in _PLAY else 0.0


def _extent(motion: str, travel: float) -> tuple[float, float]:
    """How wide and how high the way of a thing's centre is."""
    if motion in STEPS:
        return travel * abs(STEPS[motion][0]), travel * abs(STEPS[motion][1])
    if motion in NEW_MOTIONS:
        along = abs(STEPS[motion.removeprefix("zigzag ")][0])
        return (travel, 2 * ZIGZAG_SWAY) if along else (2 * ZIGZAG_SWAY, travel)
    return {"bounce": (0, travel), "swing": (travel, 0), "orbit": (2 * travel, 2 * travel)}.get(motion, (0, 0))


def _place(dice: Dice, radius: float, length: float) -> float:
    """Where the middle of a way of this length may be, on one axis, so that the thing stays in the picture."""
    room = max(0.5 - radius * REACH - length / 2 - _MARGIN, 0.0)
    return dice.between(0.5 - room, 0.5 + room)


def _tilt(dice: Dice, motion: str) -> float:
    """A slight lean, in turns; none where turning is the motion."""
    return 0.0 if motion == "spin" else dice.between(-0.025, 0.025)


def _small(dice: Dice, appearance: Known, *, motion: str, **where: Any) -> Thing:
    """One of two things. What cannot be seen to spin stays still."""
    if motion == "spin" and appearance["shape"] in ROUND:
        motion, where["travel"] = "still", 0.0
    radius = dice.between(*_RADIUS_OF_TWO)
    return Thing(
        **appearance, size="small", motion=motion, radius=radius, sense=dice.choose((-1, 1)), tilt=_tilt(dice, motion),
        **where,
    )  # fmt: skip


def _in_its_place(dice: Dice) -> Known:
    """Still for the most part; sometimes it spins."""
    return {"motion": "spin", "travel": dice.between(*_PLAY["spin"])} if dice.chance(0.3) else {"motion": "still"}


def _beside(dice: Dice) -> tuple[str, Known, Known]:
    """Next to each other; the subject moves in a way that keeps it on its side."""
    relation = dice.choose(("left of", "right of", "above", "below"))
    level = relation in ("left of", "right of")
    away = dice.between(*_APART) * (-1 if relation in ("left of", "above") else 1)
    motion = dice.choose(("still", "spin", *(("up", "down", "bounce") if level else ("left", "right", "swing"))))
    speed, travel = _travel(dice, motion, "small")
    off = dice.between(-0.04, 0.04)
    subject = {"motion": motion, "speed": speed, "travel": travel}
    other = _in_its_place(dice)
    if level:
        return relation, {**subject, "x": 0.5 + away, "y": 0.5}, {**other, "x": 0.5 - away, "y": 0.5 + off}
    return relation, {**subject, "x": 0.5, "y": 0.5 + away}, {**other, "x": 0.5 + off, "y": 0.5 - away}


def _crossing(dice: Dice) -> tuple[str, Known, Known]:
    """The subject passes the other, which stays or comes to meet it."""
    motion = dice.choose(tuple(OPPOSITE))
    subject = {"motion": motion, "speed": "fast", "travel": dice.between(*_CROSSING), "x": 0.5, "y": 0.5}
    off = dice.between(-0.06, 0.06)
    other: Known = {"x": 0.5 + off * abs(STEPS[motion][1]), "y": 0.5 + off * abs(STEPS[motion][0])}
    if dice.chance(0.4):
        other |= {"motion": OPPOSITE[motion], "speed": "fast", "travel": dice.between(*_CROSSING)}
    else:
        other |= _in_its_place(dice)
    return dice.choose(("in front of", "behind")), subject, other


def _around(dice: Dice) -> tuple[str, Known, Known]:
    subject = {"motion": "orbit", "travel": dice.between(*_ROUND), "x": 0.5, "y": 0.5, "phase": dice.share()}
    return "around", subject, {**_in_its_place(dice), "x": 0.5, "y": 0.5}


def _background(dice: Dice, things: tuple[Thing, ...], camera: str) -> Background:
    """One on which everything can be seen. A pan needs something that passes by."""
    while True:
        kind = dice.choose(("clouds", "stars")) if camera != "still" else dice.weighted(_GROUNDS)
        if kind == "gradient":
            family = dice.choose((NIGHTS, _DAYS))
            colours: tuple[str, ...] = (dice.choose(family), dice.choose(family))
        else:
            colours = (dice.choose(NIGHTS if kind == "stars" else tuple(BACKGROUNDS)),)
        if len(set(colours)) == len(colours) and all(_stands_out(thing, name) for thing in things for name in colours):
            return Background(kind=kind, colours=colours, across=dice.chance(0.5), seed=int(dice.share() * 2**32))


def _stands_out(thing: Thing, background: str) -> bool:
    ground = BACKGROUNDS[background]
    second: Colour = shade(thing.colour, thing.texture)
    return distance(COLOURS[thing.colour], ground) >= _CONTRAST and (
        thing.texture == "plain" or distance(second, ground) >= _SHADE_CONTRAST
    )
