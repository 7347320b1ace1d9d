"""The settings under guard, as a person gives them to `generate`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from engine.families import part
from engine.ops import eight_bit_attention

from .making import FRAMEPACK, WAN, Made, Pocket, make

STEPS = 12
WAN_STEPS = 50
"""What Wan makes where nothing is said: with fewer, steps are so far apart that no cache leaves many out."""
RATIOS = "1,.944,.937,.938,.942,.938,.935,.930,.918,.905,.875,.820"
"""Pocket FramePack's, in STEPS steps: what --magcache_calibration printed, the mean over four clips."""


@dataclass(frozen=True)
class Setting:
    """`clips`: how many `python -m tests.quality` makes of it. `skips`: it leaves steps out. `within`: clips are made
    while this lasts."""

    name: str
    pocket: Pocket
    flags: tuple[object, ...]
    clips: int = 64
    steps: int = STEPS
    skips: bool = False
    within: Callable[[], AbstractContextManager[object]] = nullcontext


def make_with(folder: Path, setting: Setting, *, numbers: Iterable[int]) -> Made:
    """The clips of these numbers with this setting, in `folder`, which is new."""
    with setting.within():
        return make(folder, setting.pocket, *setting.flags, numbers=numbers, steps=setting.steps)


def flags_of(options: dict[str, Any]) -> tuple[object, ...]:
    """Options as a command line has them."""
    return tuple(word for name, value in options.items() for word in (f"--{name}", value))


FP8_SCALED = Setting("--fp8_scaled", WAN, ("--fp8_scaled",))
EIGHT_BIT = Setting(
    "--attn_mode 8bit, also for few tokens", WAN, ("--attn_mode", "8bit"), clips=16,
    within=partial(mock.patch.object, eight_bit_attention, "SHORTEST", 1),
)  # fmt: skip
"""By its formula, which takes its time on a CPU; for the few tokens of a pocket model too, and to its text."""
FP8 = Setting("--fp8", WAN, ("--fp8",))
STREAMED = Setting("--blocks_to_swap 6", WAN, ("--blocks_to_swap", 6))
MAGCACHE = Setting("MagCache, its defaults", FRAMEPACK, ("--magcache_mag_ratios", RATIOS), clips=12, skips=True)
MAGCACHE_LESS = Setting(
    "MagCache, --magcache_threshold 0.12", FRAMEPACK,
    ("--magcache_mag_ratios", RATIOS, "--magcache_threshold", 0.12), clips=12, skips=True,
)  # fmt: skip
_POCKET_WAN = part("wan", "pocket").STEP_CACHES
STEP_CACHES = {
    method: Setting(f"--step_cache {method}", WAN, flags_of(options), steps=WAN_STEPS, skips=True)
    for method, options in _POCKET_WAN.items()
}
"""Each at its defaults, with the numbers of Pocket Wan."""
MAGCACHE_SHORT, TEACACHE_SHORT, FIRST_BLOCK_SHORT = (
    Setting(
        f"{method} in {STEPS} steps",
        WAN,
        (*flags_of(_POCKET_WAN[method]), "--step_cache_threshold", threshold),
        skips=True,
    )
    for method, threshold in (("magcache", 0.12), ("teacache", 0.3), ("first_block", 0.15))
)
"""In few steps, which lie farther apart, the usual thresholds of TeaCache and the first block leave hardly any out;
MagCache has its usual one."""
SETTINGS = (
    FP8_SCALED, FP8, EIGHT_BIT, MAGCACHE_SHORT, TEACACHE_SHORT, FIRST_BLOCK_SHORT, MAGCACHE, MAGCACHE_LESS,
    *STEP_CACHES.values(),
)  # fmt: skip
