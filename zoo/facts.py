"""What can be in a drawn clip: shapes, colours, textures, motions, backgrounds, and the facts of one scene.

Lengths and places are shares of the picture's side, x to the right and y downwards; time runs from 0 (first frame) to 1
(last frame); turns are clockwise. So a scene is the same at every size and length. Knows neither pixels nor words.
"""

from __future__ import annotations

from dataclasses import dataclass

Colour = tuple[int, int, int]  # RGB 0..255

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "moon")
COLOURS: dict[str, Colour] = {
    "red": (216, 24, 36),
    "orange": (250, 140, 8),
    "yellow": (255, 232, 40),
    "green": (40, 164, 48),
    "cyan": (40, 204, 214),
    "blue": (28, 98, 242),
    "purple": (140, 34, 166),
    "pink": (255, 128, 200),
    "white": (246, 246, 246),
    "black": (16, 16, 18),
}
TEXTURES = ("plain", "checkered", "dotted", "gradient")
SIZES = ("small", "big")
SPEEDS = ("slow", "medium", "fast")

STEPS = {
    "left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1),
    "up left": (-1, -1), "up right": (1, -1), "down left": (-1, 1), "down right": (1, 1),
}  # fmt: skip
MOTIONS = ("still", *STEPS, "bounce", "swing", "orbit", "spin", "grow", "shrink")
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
ROUND = ("circle", "ring")
"""A turn of these cannot be seen."""

BACKGROUNDS: dict[str, Colour] = {
    "black": (14, 14, 18),
    "gray": (126, 128, 132),
    "white": (240, 240, 238),
    "dark blue": (20, 30, 84),
    "dark green": (14, 62, 40),
    "dark red": (84, 20, 30),
    "light blue": (178, 212, 244),
    "light green": (196, 230, 192),
    "light pink": (246, 212, 220),
    "light yellow": (246, 238, 200),
}
BACKGROUND_KINDS = ("plain", "gradient", "clouds", "stars")
NIGHTS = ("black", "dark blue", "dark green", "dark red")
"""Backgrounds on which stars can be seen."""
CAMERAS = ("still", *OPPOSITE)

# What the base clips never show. It is left for LoRAs to learn.
NEW_SHAPE, NEW_TEXTURE, NEW_STYLE = "hexagon", "striped", "pixel art"
NEW_MOTIONS = tuple(f"zigzag {way}" for way in OPPOSITE)
CONCEPTS = ("striped_hexagon", "zigzag", "pixel_art")


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object. `x`, `y` is the middle of its path, `radius` half its width where it is largest.

    `travel` is the length of its path (straight motions, zigzag), the height or width of its play (bounce, swing), the
    radius of its round (orbit), the turns it makes (spin), or its smallest share of `radius` (grow, shrink).
    `sense` is 1 clockwise or to the right first, -1 the reverse; `phase` where on its round it begins, in turns.
    """

    shape: str
    colour: str
    texture: str = "plain"
    size: str
    motion: str
    speed: str = "medium"
    x: float
    y: float
    radius: float
    travel: float = 0.0
    sense: int = 1
    phase: float = 0.0
    tilt: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Background:
    """`colours` has one name, or two for a gradient (from the top or from the left); `seed` places clouds and stars."""

    kind: str
    colours: tuple[str, ...]
    across: bool = False
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All facts of one clip.

    `things` has the subject first, and one more at most; `relation` says how the subject stands to it: "left of",
    "right of", "above", "below", "in front of", "behind" (it passes there) or "around"; "" when it is alone. A panning
    camera moves over the scene by `pan`, and everything in the picture goes the other way.
    """

    things: tuple[Thing, ...]
    relation: str = ""
    camera: str = "still"
    pan: float = 0.0
    background: Background
    style: str = "smooth"

    @property
    def subject(self) -> Thing:
        return self.things[0]


@dataclass(frozen=True)
class Facts:
    """What a caption promises of its subject, and what the judge looks for. `motion` is the subject's own."""

    colour: str
    shape: str
    motion: str
    camera: str = "still"
    texture: str = "plain"

    @property
    def seen_motion(self) -> str:
        """How the subject moves in the picture: a camera that pans left lets a thing that stays go right."""
        return self.motion if self.camera == "still" else OPPOSITE[self.camera]


def facts(scene: Scene) -> Facts:
    """The facts of the scene's subject."""
    thing = scene.subject
    return Facts(thing.colour, thing.shape, thing.motion, scene.camera, thing.texture)


def is_held_out(thing: Thing) -> bool:
    """Whether this shape, colour and motion are kept together for testing: one combination in ten.

    They lie so that every pair of two facts still occurs in training. A new shape, colour or motion is never among
    them.
    """
    if thing.shape not in SHAPES or thing.motion not in MOTIONS:
        return False
    shape, colour = SHAPES.index(thing.shape), list(COLOURS).index(thing.colour)
    return (3 * shape + 7 * colour + MOTIONS.index(thing.motion)) % 10 == 0
