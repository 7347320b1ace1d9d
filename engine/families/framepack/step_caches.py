"""Step caches for FramePack: published numbers, and musubi-tuner's own spelling of MagCache. Standard library only.

`--magcache_mag_ratios` and the flags beside it are how FramePack's command lines say `--step_cache magcache`; prompt
lines may change its numbers. Sources: parts/hunyuan_step_caches.py.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ...contract.errors import OptionError
from ...contract.options import StepCaching
from ...contract.options.step_caches import are_ratios, numbers_in
from ...parts import hunyuan_step_caches as numbers
from ...parts.step_caching import StepCacheSettings, Usual, settled
from ..values import Request
from .flags import FramePackMagCache

if TYPE_CHECKING:
    from torch import nn

PUBLISHED_RATIOS = numbers.RATIOS_540P
"""What --magcache_mag_ratios 0 means."""
PUBLISHED = {
    "magcache": Usual(
        threshold=FramePackMagCache.magcache_threshold,
        start=FramePackMagCache.magcache_retention_ratio,
        most_in_a_row=FramePackMagCache.magcache_k,
        numbers=(PUBLISHED_RATIOS,),
    ),
    "teacache": Usual(threshold=0.15, start=0.0, numbers=(numbers.TEACACHE,)),
    "first_block": Usual(threshold=numbers.FIRST_BLOCK_THRESHOLD, start=0.1),
}
LINE_NAMES = {"magcache_retention_ratio": "--mcrr", "magcache_threshold": "--mct", "magcache_k": "--mck"}
_SAME = {"magcache_retention_ratio": "start", "magcache_threshold": "threshold", "magcache_k": "most_in_a_row"}


def check(flags: FramePackMagCache, caching: StepCaching) -> None:
    """OptionError where the two spellings are at odds."""
    if flags.magcache_mag_ratios is not None:
        ratios_of(flags.magcache_mag_ratios)
    given = _given(flags)
    if caching.step_cache == "none":
        return
    if given is None:
        changed = [one.name for one in fields(flags) if getattr(flags, one.name) != one.default]
        if changed:
            raise OptionError(
                f"--{changed[0]} is for --magcache_mag_ratios, and does nothing beside --step_cache.",
                "Give --step_cache_threshold, --step_cache_start and --step_cache_max_skips instead.",
                names=(changed[0], "step_cache"),
            )
        return
    if caching.step_cache != "magcache":
        raise OptionError(
            f"--{given} switches MagCache on, but --step_cache is {caching.step_cache}.",
            f"Leave out --{given}, or choose --step_cache magcache.",
            names=(given, "step_cache"),
        )
    if caching.numbers_given:
        raise OptionError(
            f"--{given} and --{caching.numbers_given[0]} both say how MagCache works.",
            f"Keep the flags that begin with --magcache, or leave --{given} out.",
            names=(given, caching.numbers_given[0]),
        )


def _given(flags: FramePackMagCache) -> str | None:
    """The flag that switches MagCache on."""
    if flags.magcache_mag_ratios is not None:
        return "magcache_mag_ratios"
    return "magcache_calibration" if flags.magcache_calibration else None


def ratios_of(text: str) -> tuple[float, ...]:
    """`--magcache_mag_ratios 1,1.07,1.29` as numbers, `0` as the published ones. OptionError."""
    found = numbers_in(text)
    if found == ((0.0,),):
        return PUBLISHED_RATIOS
    if len(found) != 1 or not are_ratios(found):
        raise OptionError(
            f"--magcache_mag_ratios {text!r} is not a list of numbers above 0.",
            "Give 0 for the usual ones, or the list that --magcache_calibration prints.",
            names=("magcache_mag_ratios",),
        )
    return found[0]


def asked_for(flags: FramePackMagCache, caching: StepCaching, line: Any) -> dict[str, Any] | None:
    """As `StepCaching.asked`, by either spelling, with what a prompt line says; None where no step is left out.

    OptionError for a line that changes what is switched off.
    """
    on, asked = _given(flags), caching.asked
    if on is not None:
        asked = {"method": "magcache", **{short: getattr(flags, name) for name, short in _SAME.items()}}
        asked |= {"calibrate": True} if flags.magcache_calibration else {}
        asked |= {"numbers": (ratios_of(flags.magcache_mag_ratios or "0"),), "ratios_flag": "--magcache_mag_ratios"}
    said = {name: getattr(line, name) for name in LINE_NAMES if getattr(line, name) is not None}
    if said and (asked is None or asked["method"] != "magcache"):
        letter = LINE_NAMES[next(iter(said))]
        raise OptionError(
            f"{line.where}: {letter} changes MagCache, which is off.",
            f"Add --magcache_mag_ratios 0, or leave {letter} out of the line.",
        )
    return None if asked is None else {**asked, **{_SAME[name]: value for name, value in said.items()}}


def settings(request: Request, dit: nn.Module) -> StepCacheSettings | None:
    """What the request asks of this DiT, None where it asks for no step cache. OptionError for missing numbers.

    Only names and shapes of the DiT are needed.
    """
    asked = request.settings.get("step_cache")
    if asked is None:
        return None
    config = dit.config
    published = (config.dim, config.num_layers, config.num_single_layers) == numbers.WIDTH_AND_BLOCKS
    return settled(
        asked,
        PUBLISHED if published else {},
        model="FramePack" if published else "a model of these sizes",
    )
