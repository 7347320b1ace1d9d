"""Rotary position tables of the video models, and their application: small pure functions.

A table is a pair (cos, sin) in float32, made in float64, for the pairs (x0, x1), (x2, x3) … of a head: [L, D/2],
tokens in t, h, w row-major order. `rotate` applies one. Tables do not depend on weights: make one for a grid and
keep it.
Sources: Wan2.1 9737cba9 (wan/modules/model.py), HunyuanVideo fa14b001 (posemb_layers.py), FramePack 97fe5dbe
(hunyuan_video_packed.py), RIFLEx arXiv 2502.15894 as in blissful-tuner e4ed1f03 and WanVideoWrapper 721cd65e.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

Table = tuple[torch.Tensor, torch.Tensor]

RIFLEX_SHRINK = 0.9
"""RIFLEx slows one frequency until its period is just longer than the video: 0.9 of a turn over all frames."""


def frequencies(dim: int, *, theta: float = 10000.0) -> torch.Tensor:
    """theta^(-2i/dim) for i = 0 … dim/2 - 1, float64 [dim/2]."""
    return theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def riflex_frequencies(dim: int, *, index: int, length: float, theta: float = 10000.0) -> torch.Tensor:
    """`frequencies` with the one numbered `index` (from 1; 0 changes none) slowed to 0.9 turns over `length` positions.

    `length` is in the unit of the reference that is followed: pixel frames (blissful-tuner) or latent frames
    (WanVideoWrapper).
    """
    omega = frequencies(dim, theta=theta)
    if index > 0:
        omega[index - 1] = RIFLEX_SHRINK * 2 * math.pi / length
    return omega


def grid_angles(positions: Sequence[torch.Tensor], omegas: Sequence[torch.Tensor]) -> torch.Tensor:
    """Angles of every cell of a grid, float64 [T*H*W, sum of the omegas' lengths].

    `positions` holds the coordinates along t, h and w (need not be whole or start at 0), `omegas` each axis'
    frequencies. The head's columns are split among the axes in the order t, h, w.
    """
    sizes = [len(axis) for axis in positions]
    parts = []
    for number, (axis, omega) in enumerate(zip(positions, omegas, strict=True)):
        shape = [1] * len(sizes)
        shape[number] = sizes[number]
        angles = torch.outer(axis.to(torch.float64), omega)
        parts.append(angles.view(*shape, -1).expand(*sizes, -1))
    return torch.cat(parts, dim=-1).flatten(0, len(sizes) - 1)


def table(angles: torch.Tensor) -> Table:
    """(cos, sin) of float64 angles, in float32."""
    return angles.cos().float(), angles.sin().float()


def wan_axes(head_dim: int) -> tuple[int, int, int]:
    """How Wan splits the head between t, h and w: d - 4*(d//6), 2*(d//6), 2*(d//6) columns."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def wan_table(
    grid: tuple[int, int, int],
    *,
    head_dim: int,
    frame_indices: Sequence[float] | None = None,
    riflex_index: int = 0,
    riflex_length: float = 0,
) -> Table:
    """Wan's table for a (T, H, W) grid of tokens: two of [T*H*W, head_dim/2].

    `frame_indices` gives each latent frame's place in time instead of 0 … T-1 (one-frame training and inference,
    musubi-tuner `calculate_freqs_i`). `riflex_index` > 0 applies RIFLEx to the temporal axis.
    """
    if frame_indices is not None and len(frame_indices) != grid[0]:
        raise ValueError(f"{len(frame_indices)} frame indices for {grid[0]} latent frames")
    positions = [torch.arange(size, dtype=torch.float64) for size in grid]
    if frame_indices is not None:
        positions[0] = torch.tensor(frame_indices, dtype=torch.float64)
    time, height, width = wan_axes(head_dim)
    omegas = [
        riflex_frequencies(time, index=riflex_index, length=riflex_length),
        frequencies(height),
        frequencies(width),
    ]
    return table(grid_angles(positions, omegas))


@lru_cache(maxsize=16)
def cached_wan_table(
    grid: tuple[int, int, int], *, head_dim: int, frame_indices: tuple[float, ...] | None, device: torch.device
) -> Table:
    """`wan_table` on a device, kept for the grids in use (a bucketed dataset has several)."""
    with torch.inference_mode(False):  # a table first made while sampling must serve training too
        cos, sin = wan_table(grid, head_dim=head_dim, frame_indices=frame_indices)
        return cos.to(device), sin.to(device)


def hunyuan_table(
    grid: Sequence[int],
    *,
    axes: Sequence[int] = (16, 56, 56),
    theta: float = 256.0,
    theta_rescale: float = 1.0,
    interpolation: float = 1.0,
    riflex_index: int = 0,
    riflex_length: float = 0,
    riflex_above: float = 50,
) -> Table:
    """HunyuanVideo's table for a (T, H, W) grid of tokens: two of [T*H*W, sum(axes)/2].

    `theta_rescale` is NTK scaling, theta * rescale^(d/(d-2)) for an axis of d columns; `interpolation` multiplies
    positions. RIFLEx (`riflex_index` from 1) acts on the temporal axis when `riflex_length`, in pixel frames, is
    above `riflex_above`.
    """
    rescaled = [theta * theta_rescale ** (dim / (dim - 2)) for dim in axes]
    omegas = [frequencies(dim, theta=value) for dim, value in zip(axes, rescaled, strict=True)]
    if riflex_index > 0 and riflex_length > riflex_above:
        omegas[0] = riflex_frequencies(axes[0], index=riflex_index, length=riflex_length, theta=rescaled[0])
    positions = [torch.arange(size, dtype=torch.float64) * interpolation for size in grid]
    return table(grid_angles(positions, omegas))


def framepack_table(
    frame_indices: Sequence[float],
    *,
    height: int,
    width: int,
    pool: tuple[int, int, int] = (1, 1, 1),
    axes: Sequence[int] = (16, 56, 56),
    theta: float = 256.0,
    side_scale: float = 1.0,
) -> Table:
    """FramePack's table for latent frames at `frame_indices`, each of height x width tokens: two of [L, sum(axes)/2].

    `pool` (2, 2, 2) or (4, 4, 4) is for history that is embedded with larger patches: cos and sin are padded by
    repeating the last value to a multiple of the patch, then averaged over it (so they are not unit vectors).
    `side_scale` multiplies the positions along h and w (musubi-tuner's RoPE scaling).
    """
    grid = (len(frame_indices), height, width)
    sides = [torch.arange(size, dtype=torch.float64) * side_scale for size in (height, width)]
    positions = [torch.tensor(frame_indices, dtype=torch.float64), *sides]
    made = table(grid_angles(positions, [frequencies(dim, theta=theta) for dim in axes]))
    if pool == (1, 1, 1):
        return made
    cos, sin = (_pooled(part.unflatten(0, grid), pool) for part in made)
    return cos, sin


def _pooled(part_THWD: torch.Tensor, pool: tuple[int, int, int]) -> torch.Tensor:
    part_DTHW = part_THWD.movedim(-1, 0).unsqueeze(0)
    rest = [-size % step for size, step in zip(part_DTHW.shape[2:], pool, strict=True)]
    padded = F.pad(part_DTHW, (0, rest[2], 0, rest[1], 0, rest[0]), mode="replicate")
    return F.avg_pool3d(padded, pool, stride=pool)[0].movedim(0, -1).flatten(0, 2)


class _Rotation(torch.autograd.Function):
    """Rotation of channel pairs. It is linear, with the opposite rotation as its transpose: backward needs no
    activation."""

    @staticmethod
    def forward(ctx: Any, x_BLHD: torch.Tensor, cos_LD: torch.Tensor, sin_LD: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos_LD, sin_LD)
        return _turn(x_BLHD, cos_LD, sin_LD)

    @staticmethod
    def backward(ctx: Any, grad_BLHD: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos_LD, sin_LD = ctx.saved_tensors
        return _turn(grad_BLHD, cos_LD, -sin_LD), None, None


def _turn(x_BLHD: torch.Tensor, cos_LD: torch.Tensor, sin_LD: torch.Tensor) -> torch.Tensor:
    pairs, cos, sin = x_BLHD.float().unflatten(-1, (-1, 2)), cos_LD.unsqueeze(-2), sin_LD.unsqueeze(-2)
    if not torch.compiler.is_compiling():  # takes a third of the formula's time; a compiler prefers the formula
        turned = torch.view_as_complex(pairs.contiguous()) * torch.complex(cos, sin)
        return torch.view_as_real(turned).flatten(-2).to(x_BLHD.dtype)
    signs = torch.arange(-1, 2, 2, dtype=torch.float32, device=x_BLHD.device)
    turned = pairs * cos.unsqueeze(-1) + pairs.flip(-1) * (sin.unsqueeze(-1) * signs)  # not stacked: that is a copy
    return turned.flatten(-2).to(x_BLHD.dtype)


def rotate(x_BLHD: torch.Tensor, cos_LD: torch.Tensor, sin_LD: torch.Tensor) -> torch.Tensor:
    """Turn each channel pair of every head by its token's angle; the arithmetic is float32, the result x's dtype.

    cos and sin: [L, D/2], or [B, L, D/2] for one table per sample. The tables get no gradient.
    """
    return _Rotation.apply(x_BLHD, cos_LD, sin_LD)
