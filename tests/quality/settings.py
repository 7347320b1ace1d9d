"""The settings under guard, as a person gives them to `generate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.families import part

from .making import FRAMEPACK, WAN, Pocket

STEPS = 12
WAN_STEPS = 50
"""What Wan makes where nothing is said: with fewer, steps are so far apart that no cache leaves many out."""
RATIOS = "1,.944,.937,.938,.942,.938,.935,.930,.918,.905,.875,.820"
"""Pocket FramePack's, in STEPS steps: what --magcache_calibration printed, the mean over four clips."""


@dataclass(frozen=True)
class Setting:
    """`clips`: how many `python -m tests.quality` makes of it. `skips`: it leaves steps out."""

    name: str
    pocket: Pocket
    flags: tuple[object, ...]
    clips: int = 64
    steps: int = STEPS
    skips: bool = False


def flags_of(options: dict[str, Any]) -> tuple[object, ...]:
    """Options as a command line has them."""
    return tuple(word for name, value in options.items() for word in (f"--{name}", value))


FP8_SCALED = Setting("--fp8_scaled", WAN, ("--fp8_scaled",))
EIGHT_BIT = Setting("--attn_mode 8bit", WAN, ("--attn_mode", "8bit"))
FP8 = Setting("--fp8", WAN, ("--fp8",))
STREAMED = Setting("--blocks_to_swap 6", WAN, ("--blocks_to_swap", 6))
MAGCACHE = Setting("MagCache, its defaults", FRAMEPACK, ("--magcache_mag_ratios", RATIOS), clips=12, skips=True)
MAGCACHE_LESS = Setting(
    "MagCache, --magcache_threshold 0.12", FRAMEPACK,
    ("--magcache_mag_ratios", RATIOS, "--magcache_threshold", 0.12), clips=12, skips=True,
)  # fmt: skip
_POCKET_WAN = part("wan", "pocket").STEP_CACHES
STEP_CACHES = tuple(
    Setting(f"--step_cache {method}", WAN, flags_of(options), steps=WAN_STEPS, skips=True)
    for method, options in _POCKET_WAN.items()
)
"""Each at its defaults, with the numbers of Pocket Wan."""
MAGCACHE_SHORT, TEACACHE_SHORT, FIRST_BLOCK_SHORT = (
    Setting(f"{method} in {STEPS} steps", WAN, (*flags_of(_POCKET_WAN[method]), "--step_cache_threshold", threshold))
    for method, threshold in (("magcache", 0.12), ("teacache", 0.3), ("first_block", 0.15))
)
"""In few steps, which lie farther apart, the usual thresholds of TeaCache and the first block leave hardly any out;
MagCache has its usual one."""
SETTINGS = (FP8_SCALED, FP8, MAGCACHE, MAGCACHE_LESS, *STEP_CACHES)
