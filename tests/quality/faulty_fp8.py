"""Quantising with one fault each, to show that the guard of `--fp8_scaled` can fail. Pocket Wan, 8 clips: right it is
3.2 levels from bfloat16, with these faults 8.6 to 61."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.ops.fp8 import quantize


def _scale_of_the_row_before(weight: Tensor, mode: str = "block", **more: Any) -> tuple[Tensor, Tensor]:
    codes, scale = quantize(weight, mode, **more)
    return codes, scale.roll(1, 0)


def _two_digits(weight: Tensor, mode: str = "block", **more: Any) -> tuple[Tensor, Tensor]:
    """With the other float8, whose numbers have two digits after the point, not three."""
    return quantize(weight, mode, **{**more, "codes_dtype": torch.float8_e5m2})


def _large_values_cut_off(weight: Tensor, mode: str = "block", **more: Any) -> tuple[Tensor, Tensor]:
    """A scale for half of the range."""
    codes, scale = quantize(weight, mode, **more)
    most = torch.finfo(codes.dtype).max
    return (codes.float() * 2).clamp(-most, most).to(codes.dtype), scale / 2


FP8_FAULTS = {
    "scale of the row before": _scale_of_the_row_before,
    "two digits": _two_digits,
    "large values cut off": _large_values_cut_off,
}
GRAVE_FAULTS = {"scale of the row before", "large values cut off"}
"""Which the judge sees too: 87 and 37 points lost on 8 clips."""
