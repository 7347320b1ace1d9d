"""MagCache's settings for FramePack: the published ratios, flags and prompt lines. Standard library only.

What is done with them is engine/sampling/magcache.py.
"""

from __future__ import annotations

from typing import Any

from ...contract.errors import OptionError
from .flags import FramePackMagCache

PUBLISHED_RATIOS = (
    1.0, 1.06971, 1.29073, 1.11245, 1.09596, 1.05233, 1.01415, 1.05672, 1.00848, 1.03632, 1.02974, 1.00984, 1.03028,
    1.00681, 1.06614, 1.05022, 1.02592, 1.01776, 1.02985, 1.00726, 1.03727, 1.01502, 1.00992, 1.03371, 0.9976, 1.02742,
    1.0093, 1.01869, 1.00815, 1.01461, 1.01152, 1.03082, 1.0061, 1.02162, 1.01999, 0.99063, 1.01186, 1.0217, 0.99947,
    1.01711, 0.9904, 1.00258, 1.00878, 0.97039, 0.97686, 0.94315, 0.97728, 0.91154, 0.86139, 0.76592,
)  # fmt: skip
"""What --magcache_mag_ratios 0 means: the authors' measurement of HunyuanVideo in 50 steps (MagCache4HunyuanVideo)."""

LINE_NAMES = {"magcache_retention_ratio": "--mcrr", "magcache_threshold": "--mct", "magcache_k": "--mck"}


def ratios_of(text: str) -> tuple[float, ...]:
    """`--magcache_mag_ratios 1,1.07,1.29` as numbers, `0` as the published ones. OptionError."""
    parts = [part.strip() for part in text.split(",")]
    try:
        found = tuple(map(float, parts))
    except ValueError:
        found = ()
    if found == (0.0,):
        return PUBLISHED_RATIOS
    if not found or not all(0 < ratio < 1000 for ratio in found):
        raise OptionError(
            f"--magcache_mag_ratios {text!r} is not a list of numbers above 0.",
            "Give 0 for the usual ones, or the list that --magcache_calibration prints.",
            names=("magcache_mag_ratios",),
        )
    return found


def settings_of(flags: FramePackMagCache, line: Any) -> dict[str, Any] | None:
    """For `denoise.step_cache`: what a prompt line says, then the flags; None where nothing is skipped or measured.

    OptionError for a line that changes what is switched off.
    """
    given = {name: getattr(line, name) for name in LINE_NAMES}
    if flags.magcache_mag_ratios is None and not flags.magcache_calibration:
        for name, value in given.items():
            if value is not None:
                raise OptionError(
                    f"{line.where}: {LINE_NAMES[name]} changes MagCache, which is off.",
                    f"Add --magcache_mag_ratios 0, or leave {LINE_NAMES[name]} out of the line.",
                )
        return None
    said = {name: getattr(flags, name) if value is None else value for name, value in given.items()}
    return {
        "ratios": ratios_of(flags.magcache_mag_ratios or "0"),
        "retention_ratio": said["magcache_retention_ratio"],
        "threshold": said["magcache_threshold"],
        "most_in_a_row": said["magcache_k"],
        "calibrate": flags.magcache_calibration,
    }
