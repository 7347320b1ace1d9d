"""Step caches: leaving most of the model out in steps that would change little. For the generation of every family."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import OptionError
from ..schema import Section, opt

StepCacheMethod = Literal["none", "magcache", "teacache", "first_block"]
_NUMBERS = {"magcache": "step_cache_ratios", "teacache": "step_cache_coefficients"}
"""The numbers of one's own that a method takes."""


@dataclass(frozen=True, kw_only=True)
class StepCaching(Section, title="Step cache", late=True):
    """Leaving the model's blocks out in steps that would change little: faster, slightly different."""

    step_cache: StepCacheMethod = opt(
        "none", "How to find such steps: magcache by ratios measured on the model, teacache by how much the timestep "
                "changes the input of the blocks, first_block by running the first block, which works with every "
                "model.",
    )  # fmt: skip
    step_cache_threshold: float | None = opt(
        None, "Estimated change up to which steps are skipped: higher is faster. "
              "Default: a cautious one for the method and model.", low=0, high=1000, advanced=True,
    )  # fmt: skip
    step_cache_start: float | None = opt(
        None, "Share of the steps, at the start, that always run; at least one. Default: the method's.", low=0,
        high=1, advanced=True,
    )  # fmt: skip
    step_cache_max_skips: int | None = opt(
        None, "Skip at most this many steps in a row. Default: the method's.", low=1, high=1000, advanced=True
    )
    step_cache_ratios: str | None = opt(
        None, "Ratios of magnitudes for magcache, step by step, spread over more or fewer steps; two "
              "lists for two experts, high noise first. Default: the published ones of this model.", advanced=True,
        metavar="X,X;X,X",
    )  # fmt: skip
    step_cache_coefficients: str | None = opt(
        None, "Polynomial for teacache, highest power first; for two experts two. Default: the published one of this "
        "model.", advanced=True, metavar="X,X;X,X",
    )  # fmt: skip
    step_cache_calibrate: bool = opt(
        False, "Skip nothing, and print the numbers that fit this model and prompt.", advanced=True
    )

    def __post_init__(self) -> None:
        given = [name for name in self.numbers_given if name not in _NUMBERS.values()]
        if given and self.step_cache == "none":
            raise OptionError(
                f"--{given[0]} does nothing without --step_cache.",
                f"Add --step_cache magcache, teacache or first_block, or leave out --{given[0]}.",
                names=(given[0], "step_cache"),
            )
        for method, name in _NUMBERS.items():
            if getattr(self, name) is not None and self.step_cache != method:
                raise OptionError(
                    f"--{name} is for --step_cache {method}, not {self.step_cache}.",
                    f"Choose --step_cache {method}, or leave out --{name}.",
                    names=(name, "step_cache"),
                )
        if not are_ratios(_lists(self, "step_cache_ratios")):
            raise _no_list(self, "step_cache_ratios", "numbers above 0")
        _lists(self, "step_cache_coefficients")

    @property
    def numbers_given(self) -> tuple[str, ...]:
        """The options beside the method that were given."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "step_cache"}
        return tuple(name for name, value in values.items() if value is not None and value is not False)

    @property
    def asked(self) -> dict[str, Any] | None:
        """For a request's settings: the method, and what was said of it; None where nothing is left out.

        "numbers" are the ratios or coefficients, a tuple for each expert.
        """
        if self.step_cache == "none":
            return None
        found: dict[str, Any] = {"method": self.step_cache}
        said = {"threshold": self.step_cache_threshold, "start": self.step_cache_start}
        said |= {"most_in_a_row": self.step_cache_max_skips}
        found |= {name: value for name, value in said.items() if value is not None}
        numbers = _NUMBERS.get(self.step_cache)
        if numbers is not None and getattr(self, numbers) is not None:
            found["numbers"] = _lists(self, numbers)
        return {**found, "calibrate": True} if self.step_cache_calibrate else found


def numbers_in(text: str) -> tuple[tuple[float, ...], ...]:
    """`1,0.98;1,0.97` as numbers, a tuple for each expert; () for what is no such list of finite numbers."""
    try:
        found = tuple(tuple(map(float, one.split(","))) for one in text.split(";"))
    except ValueError:
        return ()
    return found if all(math.isfinite(number) for one in found for number in one) else ()


def are_ratios(lists: tuple[tuple[float, ...], ...]) -> bool:
    """Whether these can be ratios of magnitudes."""
    return all(0 < ratio < 1000 for one in lists for ratio in one)


def _lists(section: StepCaching, name: str) -> tuple[tuple[float, ...], ...]:
    """The numbers of an option, () where it was not given. OptionError."""
    text = getattr(section, name)
    found = () if text is None else numbers_in(text)
    if text is not None and not found:
        raise _no_list(section, name, "numbers")
    return found


def _no_list(section: StepCaching, name: str, what: str) -> OptionError:
    return OptionError(
        f"--{name} {getattr(section, name)!r} is not a list of {what}.",
        "Give what --step_cache_calibrate prints, such as 1,0.98,0.97.",
        names=(name,),
    )
