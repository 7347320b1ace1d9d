"""The tables of wordings that captions are made of. A row of two gives a verb's forms: "moves", "moving"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .facts import BACKGROUNDS, COLOURS, NEW_SHAPE, OPPOSITE, SHAPES

Forms = tuple[str, str]

OPENERS = ("a video of", "a clip of", "an animation of", "there is")
SIZES = {"small": ("small", "little"), "big": ("big", "large")}
TEXTURES = {"plain": ("plain",), "checkered": ("checkered",), "dotted": ("dotted", "spotted"),
            "gradient": ("shaded",), "striped": ("striped",)}  # fmt: skip
PATTERNS = {"checkered": ("with a checkered pattern",), "dotted": ("with dots", "with spots"),
            "gradient": ("with a gradient",), "striped": ("with stripes",)}  # fmt: skip
SPEEDS = {"slow": ("slowly", "gently"), "fast": ("quickly", "rapidly")}
TURNS = {1: "clockwise", -1: "counterclockwise"}

_GO: tuple[Forms, ...] = (
    ("moves", "moving"), ("goes", "going"), ("slides", "sliding"), ("glides", "gliding"), ("travels", "traveling"),
    ("drifts", "drifting"), ("flies", "flying"),
)  # fmt: skip
WAYS = {
    "left": ("left", "to the left", "from right to left", "leftward"),
    "right": ("right", "to the right", "from left to right", "rightward"),
    "up": ("up", "upward", "from bottom to top"),
    "down": ("down", "downward", "from top to bottom"),
    "up left": ("up and left", "up and to the left", "diagonally up and left"),
    "up right": ("up and right", "up and to the right", "diagonally up and right"),
    "down left": ("down and left", "down and to the left", "diagonally down and left"),
    "down right": ("down and right", "down and to the right", "diagonally down and right"),
}


def _each(verbs: Iterable[Forms], tails: Iterable[str]) -> tuple[Forms, ...]:
    """Every verb with every tail."""
    tails = tuple(tails)
    return tuple((f"{verb} {tail}".strip(), f"{doing} {tail}".strip()) for verb, doing in verbs for tail in tails)


PHRASES: dict[str, tuple[Forms, ...]] = {
    "still": (("stays still", "staying still"), ("stands still", "standing still"),
              ("rests in place", "resting in place"), ("does not move", "not moving")),
    **{motion: _each(_GO, ways) for motion, ways in WAYS.items()},
    "bounce": _each((("bounces", "bouncing"),), ("", "up and down")) + _each((("jumps", "jumping"),), ("up and down",)),
    "swing": _each((("swings", "swinging"), ("moves", "moving")), ("from side to side", "back and forth")),
    "orbit": _each((("circles", "circling"), ("goes", "going"), ("flies", "flying")), ("around the center",))
    + _each((("moves", "moving"), ("flies", "flying")), ("in a loop",)),
    "spin": _each((("spins", "spinning"), ("rotates", "rotating"), ("turns", "turning")), ("", "in place")),
    "grow": (("grows", "growing"), ("gets bigger", "getting bigger"), ("becomes larger", "becoming larger")),
    "shrink": (("shrinks", "shrinking"), ("gets smaller", "getting smaller"), ("becomes smaller", "becoming smaller")),
    **{f"zigzag {way}": _each((("zigzags", "zigzagging"),), WAYS[way][:3])
       + _each((("moves", "moving"), ("goes", "going")), (f"{WAYS[way][0]} in a zigzag", f"{WAYS[way][1]} in a zigzag"))
       for way in OPPOSITE},
}  # fmt: skip
AROUND = _each((("moves", "moving"), ("goes", "going"), ("circles", "circling"), ("flies", "flying")), ("around",))
PASSES = (("passes", "passing"), ("goes", "going"))
RELATIONS = {
    "left of": ("on the left of", "on the left side of"),
    "right of": ("on the right of", "on the right side of"),
    "above": ("above",),
    "below": ("below", "under"),
}

CAMERA = ("while the camera pans {way}", "as the camera pans {way}", "with the camera panning {way}")
PANS = {way: tuple(text.format(way=way) for text in CAMERA) for way in OPPOSITE}
STILL_CAMERA = ("while the camera stays still", "with a still camera")
GROUNDS = {
    "plain": ("on a {0} background", "against a {0} background", "with a {0} background", "and the background is {0}"),
    "gradient": (
        "on a background that fades from {0} to {1}", "on a gradient background from {0} to {1}",
        "on a background that fades from {0} {from_} to {1} {to}",
    ),
    "clouds": ("on a cloudy {0} background", "on a {0} background with clouds", "in a cloudy {0} sky"),
    "stars": ("on a {0} background with stars", "in a {0} sky full of stars", "on a starry {0} background"),
}  # fmt: skip
SIDES = {False: ("at the top", "at the bottom"), True: ("on the left", "on the right")}
STYLE = {"smooth": ("",), "pixel art": ("in pixel art style", "as pixel art", "in the style of pixel art")}

_JOINTS = ("a", "an", "and", "is", "that", "which", "in front of", "behind")


def _texts() -> Iterator[str]:
    """Every piece that a caption may contain."""
    yield from (*_JOINTS, *OPENERS, *SHAPES, NEW_SHAPE, *COLOURS, *BACKGROUNDS, *TURNS.values())
    for table in (SIZES, TEXTURES, PATTERNS, SPEEDS, RELATIONS, GROUNDS, SIDES, STYLE):
        for texts in table.values():
            yield from texts
    yield from (*CAMERA, *STILL_CAMERA)
    for forms in (*PHRASES.values(), AROUND, PASSES):
        for pair in forms:
            yield from pair


def vocabulary() -> tuple[str, ...]:
    """All words of all wordings, in alphabetical order; placeholders left out."""
    return tuple(sorted({word for text in _texts() for word in text.split() if "{" not in word}))
