"""Rows of activations or gradients as float8 codes with a scale each, for fp8 matrix products.

Three ways to the same codes: the formula; on CUDA a Triton kernel that reads and writes each number once, where the
formula makes five passes; under torch.compile the formula, which Inductor fuses with what precedes it. With factors or
for long rows the compiler gets the kernel instead, as an opaque operator. With factors Inductor would write the product
in float32, twice the size of the rows, and read it again; long rows it processes twice, computing what precedes (an
activation, a LoRA's sum) both times, even if it stores that for a LoRA anyway.
For hidden values of a feed-forward layer the kernel computes the GELU too (`gelu`), so that its result is never stored.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from .fp8 import CODES

LARGEST = torch.finfo(CODES).max
SMALLEST_SCALE = 1e-12
LONGEST_ROW = 65536
"""Numbers: the kernel holds a row in registers and shared memory."""
LONGEST_FUSED_ROW = 8192
"""Numbers. Between the widths of the models and of their feed-forward layers."""

Quantize = Callable[[Tensor, Tensor | None, bool], tuple[Tensor, Tensor]]


def quantize_rows(rows_MK: Tensor, factors_K: Tensor | None = None, gelu: bool = False) -> tuple[Tensor, Tensor]:
    """(codes [M, K] float8 e4m3, scale [M, 1] float32) with codes·scale ≈ rows·factors; rows in any float format.

    The scale is the row's largest magnitude / 448, at least 1e-12. `gelu`: of the rows' GELU (by tanh), rounded to
    their format; the kernel's differs from PyTorch's in an occasional last bit.
    """
    if torch.compiler.is_compiling():
        fused = factors_K is None and rows_MK.shape[1] <= LONGEST_FUSED_ROW
        return formula(rows_MK, None, gelu) if fused else _unseen(rows_MK, factors_K, gelu)
    return (_kernel_for(rows_MK.device, rows_MK.shape[1], gelu) or formula)(rows_MK, factors_K, gelu)


def spares_gelu(device: torch.device, width: int) -> bool:
    """Whether `gelu` spares writing activated rows of this width. The formula on a GPU writes them all the same, and a
    compiler that fuses the formula fuses a preceding GELU too."""
    if torch.compiler.is_compiling():
        return width > LONGEST_FUSED_ROW
    return device.type != "cuda" or _kernel_for(device, width, gelu=True) is not None


def formula(rows_MK: Tensor, factors_K: Tensor | None = None, gelu: bool = False) -> tuple[Tensor, Tensor]:
    """What `quantize_rows` computes, in PyTorch's own operations."""
    if gelu:
        rows_MK = functional.gelu(rows_MK, approximate="tanh")
    values = rows_MK.float() if factors_K is None else rows_MK.float() * factors_K
    scale_M1 = (values.abs().amax(dim=-1, keepdim=True) / LARGEST).clamp(min=SMALLEST_SCALE)
    return (values * scale_M1.reciprocal()).clamp(-LARGEST, LARGEST).to(CODES), scale_M1


@torch.library.custom_op("musubi::quantize_rows", mutates_args=())
def _unseen(rows_MK: Tensor, factors_K: Tensor | None, gelu: bool = False) -> tuple[Tensor, Tensor]:
    return quantize_rows(rows_MK.contiguous(), factors_K, gelu)


@_unseen.register_fake
def _(rows_MK: Tensor, factors_K: Tensor | None, gelu: bool = False) -> tuple[Tensor, Tensor]:
    scale_M1 = rows_MK.new_empty((rows_MK.shape[0], 1), dtype=torch.float32)
    return torch.empty_like(rows_MK, dtype=CODES, memory_format=torch.contiguous_format), scale_M1


def _kernel_for(device: torch.device, width: int, gelu: bool) -> Quantize | None:
    return _kernel(device.index or 0, gelu) if device.type == "cuda" and width <= LONGEST_ROW else None


@functools.cache
def _kernel(device_index: int, gelu: bool) -> Quantize | None:
    """The Triton kernel, tried once on this device in this form; None if Triton or its C compiler is missing or
    fails."""
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        from .quantize_rows_triton import quantize

        quantize(torch.ones(1, 16, device=f"cuda:{device_index}", dtype=torch.bfloat16), None, gelu)
    except (RuntimeError, OSError, ImportError) as error:
        warnings.warn(
            f"Triton cannot compile kernels here, so fp8 layers quantise their inputs slowly: {error}", stacklevel=2
        )
        return None
    return quantize
