"""The Triton kernel of ops/norm_silu.py: a few pixels per program. Importing needs Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

NUMBERS_AT_ONCE = 4096  # per program: enough in flight to fill the memory's bandwidth


@triton.jit
def _norm_silu(
    x, gain, offset, out, count, channels, spacing, root,
    has_offset: tl.constexpr, smallest: tl.constexpr, pixels: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * pixels + tl.arange(0, pixels)
    places = tl.arange(0, block)
    inside = (rows < count)[:, None] & (places < channels)[None, :]
    values = tl.load(x + rows[:, None] * channels + places[None, :], mask=inside, other=0.0).to(tl.float32)
    if has_offset:
        values += tl.load(offset + places, mask=places < channels, other=0.0).to(tl.float32)[None, :]
    length = tl.maximum(tl.sqrt(tl.sum(values * values, axis=1)), smallest)
    gains = tl.load(gain + places, mask=places < channels, other=0.0).to(tl.float32)
    scaled = values * (root / length)[:, None] * gains[None, :]
    tl.store(out + rows[:, None] * spacing + places[None, :], scaled * tl.sigmoid(scaled), mask=inside)


def norm_silu_rows(x_FHWC: Tensor, gain_C: Tensor, offset_C: Tensor | None, out_FHWC: Tensor) -> None:
    """As `norm_silu`, for one clip; in this order `x_FHWC` is contiguous and `out_FHWC` has equally spaced pixels."""
    from .norm_silu import SMALLEST_NORM

    channels = x_FHWC.shape[-1]
    count = x_FHWC.numel() // channels
    block = triton.next_power_of_2(channels)
    pixels = max(1, NUMBERS_AT_ONCE // block)
    with torch.cuda.device(x_FHWC.device):
        _norm_silu[(triton.cdiv(count, pixels),)](
            x_FHWC, gain_C, gain_C if offset_C is None else offset_C, out_FHWC, count, channels, out_FHWC.stride(2),
            channels**0.5, has_offset=offset_C is not None, smallest=SMALLEST_NORM, pixels=pixels, block=block,
            num_warps=8,
        )  # fmt: skip
