"""The settings under guard, as a person gives them to `generate`."""

from __future__ import annotations

from dataclasses import dataclass

from .making import FRAMEPACK, WAN, Pocket

STEPS = 12
RATIOS = "1,.944,.937,.938,.942,.938,.935,.930,.918,.905,.875,.820"
"""Pocket FramePack's, in STEPS steps: what --magcache_calibration printed, the mean over four clips."""


@dataclass(frozen=True)
class Setting:
    """`clips`: how many `python -m tests.quality` makes of it."""

    name: str
    pocket: Pocket
    flags: tuple[object, ...]
    clips: int = 64


FP8_SCALED = Setting("--fp8_scaled", WAN, ("--fp8_scaled",))
EIGHT_BIT = Setting("--attn_mode 8bit", WAN, ("--attn_mode", "8bit"))
FP8 = Setting("--fp8", WAN, ("--fp8",))
STREAMED = Setting("--blocks_to_swap 6", WAN, ("--blocks_to_swap", 6))
MAGCACHE = Setting("MagCache, its defaults", FRAMEPACK, ("--magcache_mag_ratios", RATIOS), clips=12)
MAGCACHE_LESS = Setting(
    "MagCache, --magcache_threshold 0.12", FRAMEPACK,
    ("--magcache_mag_ratios", RATIOS, "--magcache_threshold", 0.12), clips=12,
)  # fmt: skip
SETTINGS = (FP8_SCALED, FP8, MAGCACHE, MAGCACHE_LESS)
