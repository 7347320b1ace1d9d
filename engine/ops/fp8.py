"""Weights as float8 codes and scales: the formats that files and layers share. codes·scale ≈ weight.

`quantize` is the reference tool's scheme bit for bit; `dequantize` also understands the shapes of scales that other
tools write. Knows no layer and no file.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .fp8_scales import BLOCK, settled

CODES = torch.float8_e4m3fn
SMALLEST_SCALE = 1e-8


def quantize(
    weight: Tensor, mode: str = "block", *, codes_dtype: torch.dtype = CODES, scale_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """(codes, scale) of a weight, so that codes·scale ≈ weight. codes have the weight's shape.

    mode "block": a scale for 64 input features of each row, [out, in/64, 1]; "channel": for each row, [out, 1];
    "tensor": one, []; "cast": no scaling, values are clamped to the format's range. A row that blocks do not divide
    falls back to "channel", a weight that is not a matrix to "tensor", as in the reference.
    The scale is max|w| / the largest code (at least 1e-8), rounded to the weight's dtype, and is returned as
    scale_dtype, by default the weight's.
    """
    mode = settled(mode, weight.shape)
    largest = torch.finfo(codes_dtype).max
    weight = weight.detach()
    if mode == "cast":
        one = torch.ones((), device=weight.device, dtype=scale_dtype or weight.dtype)
        return weight.clamp(-largest, largest).to(codes_dtype), one
    grouped = weight.unflatten(1, (-1, BLOCK)) if mode == "block" else weight
    highest = grouped.abs().amax() if mode == "tensor" else grouped.abs().amax(dim=-1, keepdim=True)
    # divided in the weight's dtype, so that the scale is stored as it was used; its floor is below fp16's range
    scale = (highest / largest).float().clamp(min=SMALLEST_SCALE)
    codes = (grouped.float() / scale).clamp(-largest, largest).to(codes_dtype)
    return codes.reshape(weight.shape), scale.to(scale_dtype or weight.dtype)


def dequantize(codes: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """codes·scale in `dtype`, rounded once.

    Scale shapes: [] or [1] (whole tensor), [out] or [out, 1] (row), [out, in / block, 1] (block of input features).
    """
    values = codes.to(dtype, copy=True)  # exact: every fp8 number is also a bf16, fp16 or fp32 number
    scale = scale.float()
    if scale.ndim == 1:
        scale = scale.reshape(()) if scale.numel() == 1 else scale.unsqueeze(1)
    blocked = values.unflatten(1, (scale.shape[1], -1)) if scale.ndim == 3 else values
    torch.mul(blocked, scale, out=blocked)
    return values
