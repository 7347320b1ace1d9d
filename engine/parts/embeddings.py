"""Small layers that several DiTs share: timestep features, float32 linear layers, RMS norm, modulated layer norm."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import nn

from ..ops.last_product import last_product


def timestep_features(timestep_B: torch.Tensor, *, dim: int) -> torch.Tensor:
    """cos then sin of timestep (0..1000) at dim/2 frequencies 10000^(-i/(dim/2)): float32 [B, dim].

    Computed in float64 as in Wan2.1's code: in float32 the phase of a timestep near 1000 is off by up to 6e-5.
    """
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float64, device=timestep_B.device) / -half
    angles = timestep_B.to(torch.float64).unsqueeze(1) * torch.pow(10000.0, exponent)
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()


def _no_autocast(device: torch.device) -> AbstractContextManager:
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32 whatever type its weight has, as Wan does for time and head.

    A 16-bit weight is widened a few thousand rows at a time: for a 14B model's time projection that takes tens of
    megabytes, not 600. An outer autocast does not change the result.
    """

    rows_at_once = 4096

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with _no_autocast(x.device):
            if self.weight.dtype == torch.float32:
                return F.linear(x.float(), self.weight, self.bias)
            rows, biases = self.weight.split(self.rows_at_once), self.bias.split(self.rows_at_once)
            parts = [F.linear(x.float(), r.float(), b.float()) for r, b in zip(rows, biases, strict=True)]
            return torch.cat(parts, dim=-1)


class PatchConv3d(nn.Conv3d):
    """A 3D convolution whose stride is its kernel, computed as one matrix product over patches.

    The result is that of nn.Conv3d, already as tokens; cuDNN's 3D convolution is slow in 16 bits and takes memory.
    """

    def __init__(self, in_channels: int, out_channels: int, *, patch_size: tuple[int, int, int]):
        super().__init__(in_channels, out_channels, kernel_size=patch_size, stride=patch_size)

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        """[B, C, T, H, W], each size a multiple of the patch, to [B, T, H, W, D] of the token grid."""
        for size, step in zip(x_BCTHW.shape[2:], self.kernel_size, strict=True):
            if size % step:
                raise ValueError(
                    f"latents of shape {tuple(x_BCTHW.shape)} do not divide into {self.kernel_size} patches"
                )
        patches = x_BCTHW.to(self.weight.dtype)
        for axis, step in zip((2, 3, 4), self.kernel_size, strict=True):
            patches = patches.unfold(axis, step, step)  # appends the patch axis: B C T H W pt ph pw in the end
        patches = patches.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4)
        return F.linear(patches, self.weight.flatten(1), self.bias)


class RmsNorm(nn.Module):
    """x / rms(x) * weight over the last axis, computed in float32, returned in x's dtype. Parameter: `weight` [D]."""

    def __init__(self, dim: int, *, eps: float):
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (self.dim,), self.weight.to(x.dtype), self.eps)


class Float32LayerNorm(nn.LayerNorm):
    """Layer norm computed in float32 with its own weight and bias, returned in x's dtype."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return normed.to(x.dtype)


def modulated_norm(x_BLD: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, *, eps: float) -> torch.Tensor:
    """layer_norm(x) * (1 + scale) + shift, float32 throughout and returned in float32. shift, scale: [B, 1, D]."""
    return torch.addcmul(shift, F.layer_norm(x_BLD.float(), x_BLD.shape[-1:], eps=eps), 1 + scale)


def gated_sum(x_BLD: torch.Tensor, update_BLD: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """x + update * gate in float32, returned in x's dtype. gate: float32 [B, 1, D].

    The float32 gate makes addcmul widen the others on the fly, without copies of them.
    """
    return torch.addcmul(x_BLD, update_BLD, gate).to(x_BLD.dtype)


def gated_result(
    x_BLD: torch.Tensor, layer: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor, gate: torch.Tensor
) -> torch.Tensor:
    """gated_sum(x, layer(hidden), gate) as the last operation of a block.

    If only gradients are wanted (ops/last_product.py), the values differ and the gradients are the same.
    """
    return gated_sum(x_BLD, last_product(layer, hidden, gate), gate)
