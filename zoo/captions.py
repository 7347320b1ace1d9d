"""What a clip shows, in words: small letters, no punctuation, out of a closed vocabulary. And back: words to facts.

A caption always names the subject's colour, shape and motion, its texture unless it is plain, a second thing and how
the two stand, and a camera that moves. Size, speed and background are left out at times, as people do. It says nothing
that the clip does not show.
"""

from __future__ import annotations

from engine.contract.errors import DataError

from . import words
from .dice import Dice
from .facts import COLOURS, NEW_SHAPE, SHAPES, STEPS, Background, Facts, Scene, Thing

VOCABULARY: tuple[str, ...] = words.vocabulary()
"""Every word that a caption can have, those of the concepts included; sorted."""
_CAPTION_STREAM = 4
_FINITE, _PARTICIPLE = 0, 1


def caption(scene: Scene, *, seed: int) -> str:
    """The scene in words; another seed gives another wording of the same facts."""
    dice = Dice(seed, stream=_CAPTION_STREAM)
    opener = dice.choose(words.OPENERS) if dice.chance(0.4) else ""
    progressive = not opener and dice.chance(0.3)
    parts = (
        opener,
        _name(dice, scene.subject),
        "is" if progressive else "",
        *_happening(dice, scene, _PARTICIPLE if opener or progressive else _FINITE),
        _camera(dice, scene.camera),
        _ground(dice, scene.background) if dice.chance(0.85) else "",
        dice.choose(words.STYLE[scene.style]),
    )
    return " ".join(part for part in parts if part)


def _name(dice: Dice, thing: Thing) -> str:
    """`a big dotted red circle`, `a red circle with dots`."""
    changes_size = thing.motion in ("grow", "shrink")
    before, after = [thing.colour], ""
    if thing.texture in words.PATTERNS and dice.chance(0.35):
        after = dice.choose(words.PATTERNS[thing.texture])
    elif thing.texture != "plain" or dice.chance(0.06):
        before.insert(dice.choose((0, 0, 1)), dice.choose(words.TEXTURES[thing.texture]))
    if not changes_size and dice.chance(0.65):
        before.insert(0, dice.choose(words.SIZES[thing.size]))
    article = "an" if before[0][0] in "aeiou" else "a"
    return " ".join(part for part in (article, *before, thing.shape, after) if part)


def _happening(dice: Dice, scene: Scene, form: int) -> tuple[str, ...]:
    """What the subject does, and how it stands to the other thing."""
    subject = scene.subject
    if not scene.relation:
        return (_motion(dice, subject, form),)
    other = _name(dice, scene.things[1]), _other_motion(dice, scene.things[1])
    if scene.relation == "around":
        return (dice.choose(words.AROUND)[form], *other)
    motion = _motion(dice, subject, form)
    if scene.relation in ("in front of", "behind"):
        passing = f"and {dice.choose(words.PASSES)[form]}" if dice.chance(0.6) else ""
        return (motion, passing, scene.relation, *other)
    return (motion, dice.choose(words.RELATIONS[scene.relation]), *other)


def _motion(dice: Dice, thing: Thing, form: int) -> str:
    phrase = dice.choose(words.PHRASES[thing.motion])[form]
    if thing.motion == "spin" and dice.chance(0.5):
        phrase = f"{phrase} {words.TURNS[thing.sense]}"
    if thing.motion in STEPS and thing.speed in words.SPEEDS and dice.chance(0.7):
        adverb = dice.choose(words.SPEEDS[thing.speed])
        phrase = f"{adverb} {phrase}" if dice.chance(0.5) else f"{phrase} {adverb}"
    return phrase


def _other_motion(dice: Dice, thing: Thing) -> str:
    if thing.motion == "still" and dice.chance(0.7):
        return ""
    return f"{dice.choose(('that', 'which'))} {_motion(dice, thing, _FINITE)}"


def _camera(dice: Dice, camera: str) -> str:
    if camera != "still":
        return dice.choose(words.CAMERA).format(way=camera)
    return dice.choose(words.STILL_CAMERA) if dice.chance(0.06) else ""


def _ground(dice: Dice, ground: Background) -> str:
    from_, to = words.SIDES[ground.across]
    return dice.choose(words.GROUNDS[ground.kind]).format(*ground.colours, from_=from_, to=to)


def read_caption(text: str) -> Facts:
    """The facts of the subject that a caption names first, also where a person wrote it with capitals and commas.

    DataError when it has no colour, shape or motion of ours.
    """
    said = "".join(letter if letter.isalpha() else " " for letter in text.lower()).split()
    colour_at = next((index for index, word in enumerate(said) if word in COLOURS), len(said))
    shapes = (*SHAPES, NEW_SHAPE)
    shape_at = next((index for index in range(colour_at, len(said)) if said[index] in shapes), len(said))
    if shape_at == len(said):
        raise DataError(
            f"The caption {text!r} names no thing of a known colour and shape.",
            hint=f"Name a colour ({', '.join(COLOURS)}) and after it a shape ({', '.join(shapes)}).",
        )
    skipped = {"is", "that", "which", *(adverb for adverbs in words.SPEEDS.values() for adverb in adverbs)}
    rest = " ".join(word for word in said[shape_at + 1 :] if word not in skipped) + " "
    texture = _texture_before(said[:shape_at])
    behind = {pattern: texture for texture, patterns in words.PATTERNS.items() for pattern in patterns}
    if pattern := next((pattern for pattern in behind if rest.startswith(f"{pattern} ")), ""):
        texture, rest = behind[pattern], rest.removeprefix(f"{pattern} ")
    phrases = {phrase: motion for motion, forms in words.PHRASES.items() for pair in forms for phrase in pair}
    phrases |= {phrase: "orbit" for pair in words.AROUND for phrase in pair}
    fitting = [phrase for phrase in phrases if rest.startswith(f"{phrase} ")]
    if not fitting:
        raise DataError(
            f"The caption {text!r} says no known motion after {said[shape_at]!r}.",
            hint="The motions and their wordings are in zoo/words.py.",
        )
    pan = next((way for way in words.PANS if any(form in rest for form in words.PANS[way])), "still")
    return Facts(said[colour_at], said[shape_at], phrases[max(fitting, key=len)], pan, texture)


def _texture_before(said: list[str]) -> str:
    """The texture among the last noun's own words: those from its article on."""
    articles = [index for index, word in enumerate(said) if word in ("a", "an", "the")]
    own = set(said[articles[-1] :] if articles else said)
    return next((texture for texture, wordings in words.TEXTURES.items() if own & set(wordings)), "plain")
