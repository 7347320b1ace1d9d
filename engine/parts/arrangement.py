"""Which rows of which tensors of a file make up each of our tensors, and the resulting shapes.

A family's keys.py defines it; weight_views.py reads a file accordingly. Standard library only, for the planner, which
reads headers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..contract.errors import WeightsError

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Rows:
    """Rows `start` to `stop` (as in a slice; all by default) of the tensor `name` in the file."""

    name: str
    start: int | None = None
    stop: int | None = None

    @property
    def whole(self) -> bool:
        return self.start is None and self.stop is None


Arrangement = Mapping[str, tuple[Rows, ...]]
"""Our name -> the parts of its tensor, from the first row on."""


def renamed(shapes: Shapes, rename: Callable[[str], str | None]) -> dict[str, tuple[Rows, ...]]:
    """The arrangement of a file that has our tensors under other names; of several names for one of ours the first."""
    made: dict[str, tuple[Rows, ...]] = {}
    for name in shapes:
        if (ours := rename(name)) is not None:
            made.setdefault(ours, (Rows(name),))
    return made


def arranged_shapes(arrangement: Arrangement, shapes: Shapes, *, source: str = "This file") -> dict[str, tuple]:
    """The shape that each of our tensors will have. WeightsError: the parts of one do not fit together."""
    found = {}
    for ours, parts in arrangement.items():
        if len(parts) == 1 and parts[0].whole:
            found[ours] = tuple(shapes[parts[0].name])
            continue
        if len({shapes[part.name][1:] for part in parts}) != 1 or not all(shapes[part.name] for part in parts):
            listed = ", ".join(f"{part.name} {list(shapes[part.name])}" for part in parts)
            raise WeightsError(
                f"{source}: tensors that make up {ours} have shapes that do not fit together: {listed}.",
                "Is the file damaged, or is the model not supported?",
            )
        rows = sum(len(range(shapes[part.name][0])[part.start : part.stop]) for part in parts)
        found[ours] = (rows, *shapes[parts[0].name][1:])
    return found
