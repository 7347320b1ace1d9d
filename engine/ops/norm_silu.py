"""SiLU of channel vectors scaled to the same length: what video VAEs do before nearly every convolution.

The formula makes five passes over a clip's features; on CUDA, if the features are channels-last, a Triton kernel makes
one, computing in float32, and can write straight to where the convolution reads. A bias that the convolution before
left out (`offset_C`) is added on the way.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

SMALLEST_NORM = 1e-12
Kernel = Callable[[Tensor, Tensor, Tensor | None, Tensor], None]


def norm_silu(
    x_BCFHW: Tensor, gain_C: Tensor, *, offset_C: Tensor | None = None, out_BCFHW: Tensor | None = None
) -> Tensor:
    """silu(x / |x| · sqrt(C) · gain) of x + offset, with |x| over the channels, of x's shape and type.

    Written to `out_BCFHW` if given, whose pixels may be further apart than their channels need.
    """
    usable = x_BCFHW.is_cuda and is_channels_last(x_BCFHW)
    kernel = _kernel(x_BCFHW.device.index or 0, x_BCFHW.dtype) if usable else None
    if kernel is None:
        found = formula(x_BCFHW, gain_C, offset_C)
        return found if out_BCFHW is None else out_BCFHW.copy_(found)
    if out_BCFHW is None:
        out_BCFHW = torch.empty_like(x_BCFHW)
    for x_CFHW, out_CFHW in zip(x_BCFHW, out_BCFHW, strict=True):
        kernel(x_CFHW.permute(1, 2, 3, 0), gain_C, offset_C, out_CFHW.permute(1, 2, 3, 0))
    return out_BCFHW


def formula(x_BCFHW: Tensor, gain_C: Tensor, offset_C: Tensor | None = None) -> Tensor:
    """What `norm_silu` computes, in PyTorch's own operations."""
    if offset_C is not None:
        x_BCFHW = x_BCFHW + offset_C.view(-1, 1, 1, 1)
    scaled = functional.normalize(x_BCFHW, dim=1, eps=SMALLEST_NORM).mul_(x_BCFHW.shape[1] ** 0.5)
    return functional.silu(scaled.mul_(gain_C.view(-1, 1, 1, 1)), inplace=True)


def is_channels_last(x_BCFHW: Tensor) -> bool:
    """Whether each clip's features are stored pixel by pixel, channels next to each other, without gaps."""
    _, channels, _, height, width = x_BCFHW.shape
    return x_BCFHW.stride()[1:] == (1, height * width * channels, width * channels, channels)


@functools.cache
def _kernel(device_index: int, dtype: torch.dtype) -> Kernel | None:
    """The Triton kernel, tried once on this device; None if Triton or its C compiler is missing or fails."""
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        from .norm_silu_triton import norm_silu_rows

        probe = torch.ones(1, 1, 1, 16, device=f"cuda:{device_index}", dtype=dtype)
        norm_silu_rows(probe, probe.flatten(), None, torch.empty_like(probe))
    except Exception as error:  # compilers fail with errors of their own kinds
        warnings.warn(f"Triton cannot compile kernels here, so the VAE is slower: {error}", stacklevel=2)
        return None
    return norm_silu_rows
