"""Declaring options, listing them, and building sections from data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import pytest

from engine.contract.errors import OptionError
from engine.contract.schema import Section, build, listed, opt, options, redefault, require


@dataclass(frozen=True, kw_only=True)
class Paint(Section, title="Paint", accepted={"glitter": "all paint has it"}):
    """How it looks."""

    colour: Literal["red", "green"] = opt("red", "Its colour.")
    coats: int = opt(1, "How many coats.", low=1, high=9, unit="coats")
    gloss: float = opt(0.5, "How shiny.", low=0, high=1)
    size: tuple[int, int] = opt((4, 3), "Height and width.", metavar=("HEIGHT", "WIDTH"))
    names: tuple[str, ...] = opt((), "Names.")
    weights: list[float] | None = opt(None, "Weights.")
    thinner: str | None = opt(None, "What thins it.", aliases=("solvent",))
    dry: bool = opt(False, "Dry first.")
    warmup: int | float = opt(0, "Warm up.", low=0)
    glitter: bool = opt(False, "Add glitter.")


@dataclass(frozen=True, kw_only=True)
class RedPaint(Paint, title="Paint"):
    """How it looks."""

    coats: int = redefault(Paint, "coats", 3)
    thinner: str = require(Paint, "thinner")


def made(**data: object) -> Paint:
    return build([Paint], data)[Paint]


def test_types_are_read_from_the_annotations() -> None:
    shapes = {o.name: (o.kind, o.many, o.count, o.nullable) for o in options(Paint)}
    assert shapes == {
        "colour": ("str", False, None, False),
        "coats": ("int", False, None, False),
        "gloss": ("float", False, None, False),
        "size": ("int", True, 2, False),
        "names": ("str", True, None, False),
        "weights": ("float", True, None, True),
        "thinner": ("str", False, None, True),
        "dry": ("bool", False, None, False),
        "warmup": ("number", False, None, False),
        "glitter": ("bool", False, None, False),
    }
    assert options(Paint)[0].choices == ("red", "green")


def test_an_option_without_help_is_an_error_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match="help"):
        opt(1, " ")


def test_a_field_that_is_no_option_is_an_error_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match=r"Bad\.plain"):

        class Bad(Section):
            plain: int = 1


def test_a_default_of_none_needs_a_type_that_allows_it() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Careless(Section, title="x"):
        number: int = opt(None, "A number.")

    with pytest.raises(TypeError, match="None"):
        options(Careless)


def test_a_family_changes_the_default_and_nothing_else() -> None:
    shared = {o.name: o for o in options(Paint)}["coats"]
    own = {o.name: o for o in options(RedPaint)}["coats"]
    assert own == dataclasses.replace(shared, default=3)
    assert [o.name for o in options(RedPaint)] == [o.name for o in options(Paint)]


def test_a_shared_option_can_become_required() -> None:
    with pytest.raises(OptionError, match="--thinner is required"):
        build([RedPaint], {})
    assert build([RedPaint], {"thinner": "water"})[RedPaint].coats == 3


def test_sections_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        made().coats = 2  # type: ignore[misc]


def test_values_get_their_type() -> None:
    paint = made(coats=2, gloss=1, size=[7, 8], weights=[1, 2.5], names=["a"], warmup=0.1, thinner=None)
    assert paint == Paint(coats=2, gloss=1.0, size=(7, 8), weights=(1.0, 2.5), names=("a",), warmup=0.1)  # type: ignore[arg-type]
    assert isinstance(paint.gloss, float) and isinstance(made(warmup=5.0).warmup, int)


def test_an_alias_and_dashes_are_accepted() -> None:
    assert made(solvent="oil").thinner == "oil"
    assert build([Paint], {"names": ["x"], "coats": 2}) == build([Paint], {"coats": 2, "names": ["x"]})


@pytest.mark.parametrize(
    ("data", "message", "hint"),
    [
        ({"colr": "red"}, "There is no option --colr.", "Did you mean --colour?"),
        ({"coats": 0}, "--coats must be from 1 to 9, but is 0.", "Change --coats."),
        ({"coats": True}, "--coats needs a whole number, but is True.", "Change --coats."),
        ({"coats": 2.5}, "--coats needs a whole number, but is 2.5.", "Change --coats."),
        ({"colour": "gren"}, "--colour must be red or green, but is 'gren'.", "Did you mean green?"),
        ({"size": [1]}, "--size needs 2 values (height width), but was given 1: 1.", "Change --size."),
        ({"names": "x"}, "--names needs a list, but is 'x'.", "Names."),
        ({"gloss": float("nan")}, "--gloss must be a finite number, but is nan.", "Change --gloss."),
        ({"dry": 1}, "--dry needs true or false, but is 1.", "Change --dry."),
        ({"thinner": 3}, "--thinner needs text, but is 3.", "Change --thinner."),
        ({"thinner": "a", "solvent": "b"}, "--solvent is given twice, also as thinner.", ""),
    ],
)
def test_wrong_data_is_answered_with_what_would_be_right(data: dict[str, object], message: str, hint: str) -> None:
    with pytest.raises(OptionError) as caught:
        build([Paint], data)
    assert (caught.value.message, caught.value.hint, caught.value.exit_status) == (message, hint, 2)


def test_in_a_file_the_message_names_key_and_file() -> None:
    with pytest.raises(OptionError, match=r"There is no option colr in job\.toml") as caught:
        build([Paint], {"colr": "red"}, source="job.toml")
    assert caught.value.hint == "Did you mean colour in job.toml?"
    with pytest.raises(OptionError, match=r"coats in a\.toml must be from 1 to 9") as caught:
        build([Paint], {"coats": 99, "gloss": 1}, source={"coats": "a.toml"})
    assert caught.value.hint == "Change coats in a.toml."
    with pytest.raises(OptionError) as caught:
        build([Paint], {"coats": "2"}, source="job.toml")
    assert caught.value.hint == "Remove the quotes: coats = 2"


def test_two_sections_cannot_claim_one_name() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Other(Section, title="Other"):
        solvent: str = opt("", "Clashes with an alias.")

    with pytest.raises(TypeError, match="both declare solvent"):
        listed([Paint, Other])


def test_what_changes_nothing_is_told_by_the_option() -> None:
    found = {o.name: o for o in options(Paint)}
    assert found["glitter"].accepted == "all paint has it" and found["coats"].accepted == ""
