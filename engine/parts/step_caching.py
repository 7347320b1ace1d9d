"""The settings of a step cache: what was asked for, completed with what is known about the model. No torch.

The methods are in sampling/step_caches.py; families have tables of the numbers that were published for their models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..contract.errors import OptionError

ENDLESS = 1000  # steps in a row


@dataclass(frozen=True, kw_only=True)
class StepCacheSettings:
    """Of one step cache. `numbers`: magcache's ratios or teacache's coefficients, for each expert, the one for the
    least noise last. `calibrate`: skip nothing and measure. `ratios_flag`: the flag that takes ratios."""

    method: str
    threshold: float
    start: float  # share of the steps
    most_in_a_row: int
    numbers: tuple[tuple[float, ...], ...] = ()
    calibrate: bool = False
    ratios_flag: str = "--step_cache_ratios"


@dataclass(frozen=True, kw_only=True)
class Usual:
    """A method's defaults. `numbers`: see StepCacheSettings; empty if none were published."""

    threshold: float
    start: float
    most_in_a_row: int = ENDLESS
    numbers: tuple[tuple[float, ...], ...] = ()


USUAL: dict[str, Usual] = {
    "magcache": Usual(threshold=0.12, start=0.2, most_in_a_row=4),
    "teacache": Usual(threshold=0.1, start=0.1),
    "first_block": Usual(threshold=0.05, start=0.1),
}
"""For any model. MagCache's are its authors' cautious ones for Wan2.1 1.3B; first_block's threshold is diffusers'."""


_ROWS = {"none": 0, "magcache": 1, "teacache": 3, "first_block": 2}


def rows_kept(method: str, *, predictions: int) -> int:
    """Rows of tokens held besides those in the blocks, for `Work.waiting`: what each prediction's cache keeps, or holds
    while the blocks run. `predictions`: how many per step are computed one after the other."""
    return _ROWS[method] * predictions


def magcache_flags(ratios: tuple[tuple[float, ...], ...]) -> tuple[str, ...]:
    """The flags that switch on MagCache with these ratios, for models of any size."""
    return ("--step_cache", "magcache", "--step_cache_ratios", ";".join(",".join(map(str, one)) for one in ratios))


def settled(
    asked: Mapping[str, Any] | None, known: Mapping[str, Usual], *, model: str, experts: int = 1
) -> StepCacheSettings | None:
    """The settings for a model. `asked`: `StepCaching.asked`; None: no step cache. `known`: by method, for this model.

    `model`: its name in errors. OptionError: a method needs numbers that were neither given nor published, or that are
    for another number of experts.
    """
    if asked is None:
        return None
    method, calibrate = asked["method"], asked.get("calibrate", False)
    usual = known.get(method, USUAL[method])
    numbers = asked.get("numbers", usual.numbers)
    flag = {"magcache": "step_cache_ratios", "teacache": "step_cache_coefficients"}.get(method)
    if flag is not None and not numbers and not calibrate:
        raise OptionError(
            f"--step_cache {method}: there are no published numbers for {model}.",
            f"Generate once with --step_cache_calibrate, which prints --{flag}; or use --step_cache first_block.",
            names=("step_cache", flag),
        )
    if flag is not None and not calibrate and len(numbers) != experts:
        raise OptionError(
            f"--{flag} has numbers for {len(numbers)} experts, but {experts} work on this video.",
            "Give a list for each, with ; between them, the one for high noise first."
            if experts > 1
            else f"Give one list with --{flag}, without a ; in it.",
            names=(flag,),
        )
    limits = {name: asked.get(name, getattr(usual, name)) for name in ("threshold", "start", "most_in_a_row")}
    more = {"ratios_flag": asked["ratios_flag"]} if "ratios_flag" in asked else {}
    return StepCacheSettings(method=method, numbers=numbers, calibrate=calibrate, **limits, **more)
