"""The Triton kernels of ops/norm_pad.py, for the channels-last features of one clip. Importing needs Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

NUMBERS_AT_ONCE = 4096  # per program: enough in flight to fill the memory's bandwidth
PARTS = 1056  # programs that share the statistics of a clip: eight per multiprocessor of the largest GPUs
PARTS_AT_ONCE = 64


@triton.jit(do_not_specialize=["count", "each"])
def _moments(
    x, means, spreads, count, each, channels,
    pixels: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Mean of each channel over `each` pixels, and its sum of squared differences from the mean.

    Both from sums of differences from the first pixel, which is about as far from the mean as any: no digits are lost.
    Many pixels are summed in parallel, so that no step waits for the one before.
    """
    first = tl.program_id(0) * each
    last = tl.minimum(first + each, count)
    places = tl.arange(0, block)
    known = places < channels
    pivot = tl.load(x + first.to(tl.int64) * channels + places, mask=known, other=0.0).to(tl.float32)
    sums = tl.zeros((pixels, block), tl.float32)
    squares = tl.zeros((pixels, block), tl.float32)
    for start in range(first, last, pixels):
        rows = start + tl.arange(0, pixels)
        inside = (rows < last)[:, None] & known[None, :]
        where = rows.to(tl.int64)[:, None] * channels + places[None, :]
        values = tl.load(x + where, mask=inside, other=0.0).to(tl.float32)
        differences = tl.where(inside, values - pivot[None, :], 0.0)
        sums += differences
        squares += differences * differences
    seen = (last - first).to(tl.float32)
    total = tl.sum(sums, axis=0)
    at = tl.program_id(0) * channels + places
    tl.store(means + at, pivot + total / seen, mask=known)
    tl.store(spreads + at, tl.maximum(tl.sum(squares, axis=0) - total * total / seen, 0.0), mask=known)


@triton.jit(do_not_specialize=["parts", "count", "each"])
def _joined(
    means, spreads, offset, weight, bias, scale, shift, parts, count, each, channels, eps,
    has_offset: tl.constexpr, of_group: tl.constexpr, block: tl.constexpr, at_once: tl.constexpr,
):  # fmt: skip
    """Scale and shift of one group's channels."""
    own = tl.arange(0, block)
    known = own < of_group
    places = tl.program_id(0) * of_group + own
    offsets = tl.zeros((block,), tl.float32)
    if has_offset:
        offsets = tl.load(offset + places, mask=known, other=0.0).to(tl.float32)
    total = 0.0
    for start in range(0, parts, at_once):
        numbers = start + tl.arange(0, at_once)
        inside = (numbers < parts)[:, None] & known[None, :]
        shares = tl.maximum(tl.minimum(count - numbers * each, each), 0).to(tl.float32) / count
        found = tl.load(means + numbers[:, None] * channels + places[None, :], mask=inside, other=0.0)
        total += tl.sum(tl.where(inside, (found + offsets[None, :]) * shares[:, None], 0.0))
    mean = total / of_group
    squares = 0.0
    for start in range(0, parts, at_once):
        numbers = start + tl.arange(0, at_once)
        inside = (numbers < parts)[:, None] & known[None, :]
        shares = tl.maximum(tl.minimum(count - numbers * each, each), 0).to(tl.float32) / count
        where = numbers[:, None] * channels + places[None, :]
        found = tl.load(means + where, mask=inside, other=0.0) + offsets[None, :] - mean
        spread = tl.load(spreads + where, mask=inside, other=0.0) / count
        squares += tl.sum(tl.where(inside, spread + found * found * shares[:, None], 0.0))
    inverse = 1.0 / tl.sqrt(squares / of_group + eps)
    scales = inverse * tl.load(weight + places, mask=known, other=0.0).to(tl.float32)
    shifts = tl.load(bias + places, mask=known, other=0.0).to(tl.float32) + (offsets - mean) * scales
    tl.store(scale + places, scales, mask=known)
    tl.store(shift + places, shifts, mask=known)


@triton.jit(do_not_specialize=["count", "first", "frames", "height", "width", "edge"])
def _write(
    x, scale, shift, out, count, first, frames, height, width, edge, channels,
    active: tl.constexpr, pixels: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * pixels + tl.arange(0, pixels)
    places = tl.arange(0, block)
    across, down = width + 2 * edge, height + 2 * edge
    column = tl.minimum(tl.maximum(rows % across - edge, 0), width - 1)
    line = tl.minimum(tl.maximum(rows // across % down - edge, 0), height - 1)
    frame = tl.minimum(tl.maximum(rows // (across * down) + first, 0), frames - 1)
    source = (frame.to(tl.int64) * height + line) * width + column
    there = (rows < count)[:, None]
    where = source[:, None] * channels + places[None, :]
    values = tl.load(x + where, mask=there & (places < channels)[None, :], other=0.0)
    if active:
        known = places < channels
        scales = tl.load(scale + places, mask=known, other=0.0)
        shifts = tl.load(shift + places, mask=known, other=0.0)
        wide = values.to(tl.float32) * scales[None, :] + shifts[None, :]
        values = (wide * tl.sigmoid(wide)).to(out.dtype.element_ty)
    target = rows.to(tl.int64)[:, None] * channels + places[None, :]
    tl.store(out + target, values, mask=there & (places < channels)[None, :])


@triton.jit(do_not_specialize=["count"])
def _add(h, x, offset, count, channels, pixels: tl.constexpr, block: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * pixels + tl.arange(0, pixels)
    places = tl.arange(0, block)
    inside = (rows < count)[:, None] & (places < channels)[None, :]
    where = rows[:, None] * channels + places[None, :]
    offsets = tl.load(offset + places, mask=places < channels, other=0.0).to(tl.float32)
    left = tl.load(h + where, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(x + where, mask=inside, other=0.0).to(tl.float32)
    tl.store(h + where, left + right + offsets[None, :], mask=inside)


def _tile(channels: int) -> tuple[int, int]:
    """Pixels and channels (a power of two) that a program holds at once."""
    block = triton.next_power_of_2(channels)
    return max(1, NUMBERS_AT_ONCE // block), block


def affine(
    x_FHWC: Tensor, weight_C: Tensor, bias_C: Tensor, offset_C: Tensor | None, scale_C: Tensor, shift_C: Tensor,
    *, groups: int, eps: float,
) -> None:  # fmt: skip
    """As `group_norm_affine`, for one clip, into `scale_C` and `shift_C`."""
    channels = x_FHWC.shape[-1]
    count, of_group = x_FHWC.numel() // channels, channels // groups
    pixels, block = _tile(channels)
    each = triton.cdiv(triton.cdiv(count, PARTS), pixels) * pixels
    parts = triton.cdiv(count, each)
    means_SC, spreads_SC = torch.empty(2, parts, channels, device=x_FHWC.device, dtype=torch.float32)
    with _on(x_FHWC):
        _moments[(parts,)](x_FHWC, means_SC, spreads_SC, count, each, channels, pixels=pixels, block=block, num_warps=4)
        _joined[(groups,)](
            means_SC, spreads_SC, weight_C if offset_C is None else offset_C, weight_C, bias_C, scale_C, shift_C,
            parts, count, each, channels, eps, has_offset=offset_C is not None, of_group=of_group,
            block=triton.next_power_of_2(of_group), at_once=PARTS_AT_ONCE, num_warps=4,
        )  # fmt: skip


def write(x_FHWC: Tensor, out_FHWC: Tensor, own: tuple[Tensor, Tensor] | None, *, start: int, edge: int) -> None:
    """As `padded`, for one clip; both are contiguous in this order."""
    frames, height, width, channels = x_FHWC.shape
    count = out_FHWC.numel() // channels
    pixels, block = _tile(channels)
    scale_C, shift_C = own if own is not None else (x_FHWC, x_FHWC)
    with _on(x_FHWC):
        _write[(triton.cdiv(count, pixels),)](
            x_FHWC, scale_C, shift_C, out_FHWC, count, start, frames, height, width, edge, channels,
            active=own is not None, pixels=pixels, block=block, num_warps=8,
        )  # fmt: skip


def add(h_FHWC: Tensor, x_FHWC: Tensor, offset_C: Tensor) -> None:
    """As `add_`, for one clip."""
    channels = h_FHWC.shape[-1]
    count = h_FHWC.numel() // channels
    pixels, block = _tile(channels)
    with _on(h_FHWC):
        _add[(triton.cdiv(count, pixels),)](
            h_FHWC, x_FHWC, offset_C, count, channels, pixels=pixels, block=block, num_warps=8
        )


def _on(x: Tensor) -> torch.cuda.device:
    return torch.cuda.device(x.device)
