"""The Triton kernel of ops/quantize_rows.py: one program per row. Importing needs Triton."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from .fp8 import CODES

SLOPE = tl.constexpr(-2 * math.sqrt(2 / math.pi) / math.log(2))


@triton.jit
def _gelu(x):
    """x/2 · (1 + tanh u) with u = sqrt(2/π) · (x + 0.044715·x³), as x / (1 + exp(-2u)): one exponential, one quotient.

    The quotient is a fast one, which is 0 for denominators beyond 2^126; the exact result is as good as 0 there.
    """
    return libdevice.fast_dividef(x, 1.0 + tl.exp2(SLOPE * (x + 0.044715 * (x * x * x))))


@triton.jit
def _quantize(
    rows, factors, codes, scales, row_stride, width, gelu: tl.constexpr, has_factors: tl.constexpr,
    largest: tl.constexpr, smallest_scale: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, block)
    inside = places < width
    values = tl.load(rows + row * row_stride + places, mask=inside, other=0.0).to(tl.float32)
    if gelu:
        values = _gelu(values).to(rows.dtype.element_ty).to(tl.float32)
    if has_factors:
        values = values * tl.load(factors + places, mask=inside, other=0.0)
    scale = tl.maximum(tl.div_rn(tl.max(tl.abs(values), axis=0), largest), smallest_scale)
    scaled = values * tl.div_rn(1.0, scale)
    scaled = tl.minimum(tl.maximum(scaled, -largest), largest)
    tl.store(codes + row * width + places, scaled.to(codes.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale)


def quantize(rows_MK: Tensor, factors_K: Tensor | None, gelu: bool) -> tuple[Tensor, Tensor]:
    """As `quantize_rows`, on the CUDA device of rows_MK."""
    from .quantize_rows import LARGEST, SMALLEST_SCALE

    rows_MK = rows_MK if rows_MK.stride(-1) == 1 else rows_MK.contiguous()
    count, width = rows_MK.shape
    codes = torch.empty((count, width), dtype=CODES, device=rows_MK.device)
    scale_M1 = torch.empty((count, 1), dtype=torch.float32, device=rows_MK.device)
    if factors_K is not None:
        factors_K = factors_K.float().contiguous()
    block = triton.next_power_of_2(width)
    with torch.cuda.device(rows_MK.device):
        _quantize[(count,)](
            rows_MK, factors_K, codes, scale_M1, rows_MK.stride(0), width,
            gelu=gelu, has_factors=factors_K is not None, largest=LARGEST, smallest_scale=SMALLEST_SCALE,
            block=block, num_warps=min(16, max(1, block // 1024)),
        )  # fmt: skip
    return codes, scale_M1
