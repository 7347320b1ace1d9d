"""What a video VAE with group norms does before a convolution (norm, SiLU, repeating edges), and the sum after it.

PyTorch's operations make a dozen passes over a clip's features for this. On CUDA, if the features are channels-last,
Triton kernels make two, one for the statistics and one that writes straight to where the convolution reads; they
compute in float32. A bias that a convolution left out (`offset_C`) is added on the way. Without gradients.

Knows nothing of models. Every function has a formula in PyTorch's operations, against which the kernels are tested.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional

from .norm_silu import is_channels_last

Affine = tuple[Tensor, Tensor]
"""scale_BC and shift_BC, float32: what turns features into their norm, x * scale + shift."""


def can_fuse(x_BCFHW: Tensor) -> bool:
    """Whether the kernels take these features; if not, PyTorch's operations need fewer passes in another order."""
    if torch.is_grad_enabled():
        return False
    return _kernels_for(x_BCFHW) is not None


def group_norm_affine(
    x_BCFHW: Tensor, weight_C: Tensor, bias_C: Tensor, *, groups: int, eps: float, offset_C: Tensor | None = None
) -> Affine:
    """The group norm of x + offset over a whole clip, as a scale and a shift of x."""
    kernels = _kernels_for(x_BCFHW)
    if kernels is None:
        return affine_formula(x_BCFHW, weight_C, bias_C, groups=groups, eps=eps, offset_C=offset_C)
    scale_BC, shift_BC = (torch.empty(x_BCFHW.shape[:2], device=x_BCFHW.device, dtype=torch.float32) for _ in range(2))
    for x_CFHW, scale_C, shift_C in zip(x_BCFHW, scale_BC, shift_BC, strict=True):
        kernels.affine(x_CFHW.permute(1, 2, 3, 0), weight_C, bias_C, offset_C, scale_C, shift_C, groups=groups, eps=eps)
    return scale_BC, shift_BC


def affine_formula(
    x_BCFHW: Tensor, weight_C: Tensor, bias_C: Tensor, *, groups: int, eps: float, offset_C: Tensor | None = None
) -> Affine:
    """What `group_norm_affine` computes, in PyTorch's own operations."""
    batch, channels = x_BCFHW.shape[:2]
    offset_C = torch.zeros_like(weight_C) if offset_C is None else offset_C
    wide_BCL = x_BCFHW.float().flatten(2) + offset_C.float()[:, None]
    variance_BG, mean_BG = torch.var_mean(wide_BCL.reshape(batch, groups, -1), dim=2, correction=0)
    mean_BC, inverse_BC = (
        value.repeat_interleave(channels // groups, dim=1) for value in (mean_BG, torch.rsqrt(variance_BG + eps))
    )
    scale_BC = inverse_BC * weight_C.float()
    return scale_BC, bias_C.float() + (offset_C.float() - mean_BC) * scale_BC


def padded(x_BCFHW: Tensor, start: int, end: int, *, edge: int, affine: Affine | None = None) -> Tensor:
    """Frames start … end - 1 with `edge` more pixels on each side that repeat the outermost; frames before 0 repeat it.

    With `affine`, those of silu(x * scale + shift).
    """
    kernels = _kernels_for(x_BCFHW)
    if kernels is None:
        return padded_formula(x_BCFHW, start, end, edge=edge, affine=affine)
    batch, channels, _, height, width = x_BCFHW.shape
    size = (batch, end - start, height + 2 * edge, width + 2 * edge, channels)
    out_BFHWC = torch.empty(size, device=x_BCFHW.device, dtype=x_BCFHW.dtype)
    for place, (x_CFHW, out_FHWC) in enumerate(zip(x_BCFHW, out_BFHWC, strict=True)):
        own = None if affine is None else (affine[0][place], affine[1][place])
        kernels.write(x_CFHW.permute(1, 2, 3, 0), out_FHWC, own, start=start, edge=edge)
    return out_BFHWC.permute(0, 4, 1, 2, 3)


def padded_formula(x_BCFHW: Tensor, start: int, end: int, *, edge: int, affine: Affine | None) -> Tensor:
    """What `padded` computes, in PyTorch's own operations."""
    part_BCFHW = x_BCFHW[:, :, max(start, 0) : end]
    if affine is not None:
        scale_BC111, shift_BC111 = (value[..., None, None, None] for value in affine)
        part_BCFHW = functional.silu(torch.addcmul(shift_BC111, part_BCFHW, scale_BC111)).to(x_BCFHW.dtype)
    part_BCFHW = functional.pad(part_BCFHW, (edge, edge, edge, edge, max(-start, 0), 0), mode="replicate")
    return part_BCFHW.contiguous(memory_format=torch.channels_last_3d)


def add_(h_BCFHW: Tensor, x_BCFHW: Tensor, offset_C: Tensor) -> Tensor:
    """h + x + offset, written to h; rounded once."""
    kernels = _kernels_for(h_BCFHW)
    if kernels is None or not is_channels_last(x_BCFHW):
        return h_BCFHW.copy_(h_BCFHW.float() + x_BCFHW.float() + offset_C.float().view(-1, 1, 1, 1))
    for h_CFHW, x_CFHW in zip(h_BCFHW, x_BCFHW, strict=True):
        kernels.add(h_CFHW.permute(1, 2, 3, 0), x_CFHW.permute(1, 2, 3, 0), offset_C)
    return h_BCFHW


def _kernels_for(x_BCFHW: Tensor) -> ModuleType | None:
    usable = x_BCFHW.is_cuda and is_channels_last(x_BCFHW)
    return _kernels(x_BCFHW.device.index or 0, x_BCFHW.dtype) if usable else None


@functools.cache
def _kernels(device_index: int, dtype: torch.dtype) -> ModuleType | None:
    """The Triton kernels, tried once on this device; None if Triton or its C compiler is missing or fails."""
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        from . import norm_pad_triton

        probe = torch.ones(1, 1, 1, 16, device=f"cuda:{device_index}", dtype=dtype)
        scale_C, shift_C = torch.ones(2, 16, device=probe.device)
        norm_pad_triton.affine(probe, probe.flatten(), probe.flatten(), None, scale_C, shift_C, groups=1, eps=1.0)
        norm_pad_triton.write(probe, probe.clone(), (scale_C, shift_C), start=0, edge=0)
        norm_pad_triton.add(probe, probe.clone(), probe.flatten())
    except Exception as error:  # compilers fail with errors of their own kinds
        warnings.warn(f"Triton cannot compile kernels here, so the VAE is slower: {error}", stacklevel=2)
        return None
    return norm_pad_triton
