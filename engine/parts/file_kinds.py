"""Telling by its tensor names what a file is, so that a wrong file is answered by a sentence.

A family lists the kinds of files that a person may hand over (`Kind`), the most particular first; `check_role` writes
the message. Knows the form of such a list, and the names of LoRA tensors, which are the same for every model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..contract.errors import WeightsError

Shapes = Mapping[str, tuple[int, ...]]
Fits = Callable[[Shapes], bool]

_LORA_MARKS = (".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".hada_w1_a", ".lokr_w1")


@dataclass(frozen=True)
class Kind:
    """A kind of file: its role ("dit", "vae" …), what it is called with its article, and where it belongs."""

    role: str
    words: str
    advice: str
    fits: Fits


def has(*ends: str) -> Fits:
    """Whether each of the names is there, alone or after a prefix that ends in a dot."""

    def fits(shapes: Shapes) -> bool:
        return all(any(name == end or name.endswith("." + end) for name in shapes) for end in ends)

    return fits


def has_any(*ends: str) -> Fits:
    """Whether one of the names is there."""
    return lambda shapes: any(has(end)(shapes) for end in ends)


def is_lora(shapes: Shapes) -> bool:
    """Whether these are adapters: LoRA, LoHa or LoKr, in any naming."""
    return any(mark in name for name in shapes for mark in _LORA_MARKS)


def kind_of(kinds: Sequence[Kind], shapes: Shapes) -> Kind | None:
    """The first kind that fits."""
    return next((kind for kind in kinds if kind.fits(shapes)), None)


def check_role(kinds: Sequence[Kind], shapes: Shapes, *, wanted: str, flag: str, source: str) -> None:
    """WeightsError unless the file has the role `wanted`; the message says what it looks like and where to give it."""
    kind = kind_of(kinds, shapes)
    if kind is not None and kind.role == wanted:
        return
    words = next(known.words for known in kinds if known.role == wanted)
    if kind is not None:
        raise WeightsError(f"{source} looks like {kind.words}, not {words}.", f"{kind.advice} {flag} takes {words}.")
    shown = ", ".join(list(shapes)[:3]) or "nothing"
    raise WeightsError(
        f"{source} is not {words}: it holds {len(shapes)} tensors ({shown}, …).", f"Give another {flag}."
    )
