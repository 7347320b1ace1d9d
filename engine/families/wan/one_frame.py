"""One-frame inference and training: a single image at a place in time of its own, beside control images at theirs.

Pure functions over places; the format is musubi-tuner's. Standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...contract.errors import OptionError

MOST_CONTROLS = 2
USUAL_PLACES = "target_index=1,control_index=0"
_FORM = "Write it as target_index=1,control_index=0 (several as control_index=0;2)."


@dataclass(frozen=True)
class OneFrame:
    """The place in time of the image to make, and of each control image in the order in which they are given."""

    target_index: int = 1
    control_indices: tuple[int, ...] = (0,)


def parse(text: str, *, where: str = "--one_frame_inference") -> OneFrame:
    """Read `target_index=1,control_index=0;2`; what is left out is 1 and 0. Raises OptionError."""
    found: dict[str, tuple[int, ...]] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        places = [place.strip() for place in value.split(";")]
        if name not in ("target_index", "control_index") or not all(place.isdecimal() for place in places):
            raise OptionError(f"{where}: {part!r} is not a place in time.", _FORM)
        if name in found or (name == "target_index" and len(places) > 1):
            raise OptionError(f"{where}: {name} is given twice.", _FORM)
        found[name] = tuple(map(int, places))
    (target,) = found.get("target_index", (1,))
    return OneFrame(target, found.get("control_index", (0,)))


def order(target_index: int, control_indices: Sequence[int]) -> list[tuple[int, int | None]]:
    """The frames in the order in which the model gets them: (place in time, number of the control or None: target).

    Each control keeps its own place. musubi-tuner sorts the places and hands the controls out in their given order,
    so that controls at 10 and 0 change places. ValueError when two frames have one place.
    """
    places: list[tuple[int, int | None]] = [(place, number) for number, place in enumerate(control_indices)]
    places.append((target_index, None))
    if len({place for place, _ in places}) < len(places):
        raise ValueError("two frames have the same place in time")
    return sorted(places, key=lambda frame: frame[0])
