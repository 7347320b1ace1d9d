"""The kernels of ops/eight_bit_gradients.py: one for gradients to queries, one for those to keys and values. Importing
needs Triton's Gluon.

As in ops/hopper_attention_gluon.py warps have roles: one loads, and two warpgroups have 64 rows each, queries in one
kernel and keys in the other. They go through all tokens of the other side in steps, and keep two sums in registers:

| rows | for each token | first sum | second sum |
|---|---|---|---|
| queries | weight, term | weights · keys | terms · keys |
| keys | weight, term | weights · gradients of results | terms · queries |

A weight is 2^(score - shift of its query), a term is its weight · (change - delta of its query), a change the product
of the gradient of a result with a value. Scores and changes are products of int8 codes, sums those of float8 codes.
While one warpgroup computes weights and terms, the other's products run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from triton import cdiv
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .eight_bit_attention import BLOCK
from .hopper_attention_gluon import _operand, _tiles

_REGISTERS, _LOADERS = 240, 24
"""Registers per thread: of the warps that compute, of the one that loads."""
_ZERO = gl.constexpr(0x4B400000)
"""Where products of int8 start: as bits these integers are the float32 numbers 12582912 + the product, which saves
turning each into a float. |127 · 127 · 128| is less than the 2^22 that this holds for."""
_ZERO_VALUE = gl.constexpr(12582912.0)


@dataclass(frozen=True)
class Tiling:
    """What a kernel is compiled for: whether rows are queries, channels of a head, rows of a group, groups, tokens of a
    step, steps in shared memory. Fastest of those tried: benchmarks/optimisations.md."""

    of_queries: bool
    width: int
    rows: int = 64
    groups: int = 2
    block: int = 64
    stages: int = 4
    codes: bool = True  # for `_operand`


class Numbers(NamedTuple):
    """float32. Scales of score codes and of values are for BLOCK tokens [B·H, blocks], the others are for a query
    [B·H, blocks · BLOCK]. For the kernels value_scales and deltas are multiplied with what makes terms fit into float8
    (`eight_bit_gradients.fitting`), and totals, the sums of weights, with 2^WEIGHT_BITS as the weights are."""

    query_scales: Tensor
    key_scales: Tensor
    value_scales: Tensor
    shifts: Tensor
    deltas: Tensor
    factors: Tensor
    totals: Tensor


@gluon.jit
def _slots(tiles, stages: gl.constexpr):
    return gl.allocate_shared_memory(tiles.dtype, [stages] + tiles.block_shape, tiles.layout)


@gluon.jit
def _load(tiles, slots, barriers, at, steps, tiling: gl.constexpr):
    """One warp: both codes of the rows of all groups, then everything of a step's tokens behind one barrier."""
    own_tiles, own_change_tiles, score_tiles, change_tiles, first_tiles, second_tiles, shift_tiles, delta_tiles = tiles
    own_slots, own_change_slots, score_slots, change_slots, first_slots, second_slots, shift_slots, delta_slots = slots
    own_filled, filled, free = barriers
    row, other_row, across_row, column, sample_head = at
    groups: gl.constexpr = tiling.groups
    stages: gl.constexpr = tiling.stages
    mbarrier.expect(own_filled, groups * (own_tiles.block_type.nbytes + own_change_tiles.block_type.nbytes))
    for group in gl.static_range(groups):
        place = [row + group * tiling.rows, column]
        tma.async_copy_global_to_shared(own_tiles, place, own_filled, own_slots.index(group))
        tma.async_copy_global_to_shared(own_change_tiles, place, own_filled, own_change_slots.index(group))
    each: gl.constexpr = score_tiles.block_type.nbytes + change_tiles.block_type.nbytes + first_tiles.block_type.nbytes
    of_queries: gl.constexpr = (
        second_tiles.block_type.nbytes + shift_tiles.block_type.nbytes + delta_tiles.block_type.nbytes
    )
    for index in range(steps):
        token, slot = index * tiling.block, index % stages
        mbarrier.wait(free.index(slot), ((index // stages) & 1) ^ 1)
        here = filled.index(slot)
        mbarrier.expect(here, each if tiling.of_queries else each + of_queries)
        place = [other_row + token, column]
        tma.async_copy_global_to_shared(score_tiles, place, here, score_slots.index(slot))
        tma.async_copy_global_to_shared(change_tiles, place, here, change_slots.index(slot))
        tma.async_copy_global_to_shared(first_tiles, [across_row, token], here, first_slots.index(slot))
        if not tiling.of_queries:
            tma.async_copy_global_to_shared(second_tiles, [across_row, token], here, second_slots.index(slot))
            tma.async_copy_global_to_shared(shift_tiles, [sample_head, token], here, shift_slots.index(slot))
            tma.async_copy_global_to_shared(delta_tiles, [sample_head, token], here, delta_slots.index(slot))


@gluon.jit
def _begin(own, slots, filled, index, layout_MN: gl.constexpr, tiling: gl.constexpr):
    """Start the products that a step begins with: scores and changes."""
    own_MD, own_change_MD = own
    slot = index % tiling.stages
    mbarrier.wait(filled.index(slot), (index // tiling.stages) & 1)
    zero_MN = gl.full([tiling.rows, tiling.block], _ZERO, gl.int32, layout=layout_MN)
    score_MN = warpgroup_mma(own_MD, slots[2].index(slot).permute((1, 0)), zero_MN, is_async=True)
    change_MN = warpgroup_mma(own_change_MD, slots[3].index(slot).permute((1, 0)), zero_MN, is_async=True)
    return score_MN, change_MN


@gluon.jit
def _scaled(count_MN, scale, offset):
    """A product of codes · scale - offset."""
    return count_MN.to(gl.float32, bitcast=True) * scale - (offset + _ZERO_VALUE * scale)


@gluon.jit
def _row_sums(term_MN, tiling: gl.constexpr):
    """[rows, 4]: what each thread has of a row."""
    return gl.sum(gl.sum(term_MN.reshape([tiling.rows, tiling.block // 8, 4, 2]), axis=3), axis=1)


@gluon.jit
def _finish(
    own, begun, slots, filled, free, index, scales, of_rows, length, sums,
    layout_MN: gl.constexpr, layout_MD: gl.constexpr, last: gl.constexpr, tiling: gl.constexpr,
):  # fmt: skip
    """Finish a step that has begun, and begin the next; returns that one's products and the sums so far."""
    score_MN, change_MN = begun
    first_MD, second_MD, rest_M4 = sums
    scale, change_scale = scales
    _, _, _, _, first_slots, second_slots, shift_slots, delta_slots = slots
    slot = index % tiling.stages
    if tiling.of_queries:
        shift, delta = gl.expand_dims(of_rows[0], 1), gl.expand_dims(of_rows[1], 1)
    else:
        shift = shift_slots.index(slot).load(layout_MN)
    weight_MN = gl.exp2(_scaled(score_MN, scale, shift))
    if last and tiling.of_queries:  # queries past the last one have weight 0 by their shift
        token_N = index * tiling.block + gl.arange(0, tiling.block, layout=gl.SliceLayout(0, layout_MN))
        weight_MN = gl.where(gl.expand_dims(token_N < length, 0), weight_MN, 0.0)
    first_DN = first_slots.index(slot)
    codes_MN = _operand(weight_MN.to(gl.float8e4nv), layout_MD, tiling)
    first_MD = warpgroup_mma(codes_MN, first_DN.permute((1, 0)), first_MD, is_async=True)
    if tiling.of_queries:
        # Without a branch between them ptxas of CUDA 12.8 leaves out the first of two products with the same codes.
        mbarrier.wait(filled.index(slot), (index // tiling.stages) & 1)
        second_DN = first_DN
    else:
        delta = delta_slots.index(slot).load(layout_MN)
        second_DN = second_slots.index(slot)
    term_MN = weight_MN * _scaled(change_MN, change_scale, delta)
    if tiling.of_queries:
        rest_M4 += _row_sums(term_MN, tiling)
    codes_MN = _operand(term_MN.to(gl.float8e4nv), layout_MD, tiling)
    second_MD = warpgroup_mma(codes_MN, second_DN.permute((1, 0)), second_MD, is_async=True)
    if last:
        first_MD, second_MD = warpgroup_mma_wait(0, deps=(first_MD, second_MD))
    else:
        score_MN, change_MN = _begin(own, slots, filled, index + 1, layout_MN, tiling)
        score_MN, change_MN, first_MD, second_MD = warpgroup_mma_wait(
            0, deps=(score_MN, change_MN, first_MD, second_MD)
        )
        mbarrier.arrive(free.index(slot), count=1)
    return (score_MN, change_MN), (first_MD, second_MD, rest_M4)


@gluon.jit
def _scales(own_scale, own_value_scale, numbers, place, tiling: gl.constexpr):
    """Of scores and of changes, in the step whose block's scales are at `place`."""
    if tiling.of_queries:
        return own_scale * gl.load(numbers[1] + place), gl.load(numbers[2] + place)
    else:
        return own_scale * gl.load(numbers[0] + place), own_value_scale


@gluon.jit
def _differentiate_group(
    slots, barriers, numbers, channel_scales, outs, place, group: gl.constexpr, tiling: gl.constexpr
):
    """Four warps: `rows` rows of a head, step by step."""
    query_scales, key_scales, value_scales, shifts, deltas, factors, totals = numbers
    own_filled, filled, free = barriers
    first, length, other_length, padded, sample, head, heads = place
    layout_MN: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, tiling.block, 32])
    layout_MD: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, tiling.width, 32])
    layout_M: gl.constexpr = gl.SliceLayout(1, layout_MN)
    each: gl.constexpr = tiling.groups * tiling.rows
    per: gl.constexpr = each // tiling.block
    sample_head = sample * heads + head
    steps, others = gl.cdiv(other_length, tiling.block), sample_head * gl.cdiv(other_length, each)
    own_place = sample_head * gl.cdiv(length, each) + first // each
    at_M = sample_head * padded + first + group * tiling.rows + gl.arange(0, tiling.rows, layout=layout_M)
    rest_M4 = _row_sums(gl.full([tiling.rows, tiling.block], 0.0, gl.float32, layout=layout_MN), tiling)
    zero_MD = gl.full([tiling.rows, tiling.width], 0.0, gl.float32, layout=layout_MD)
    sums = (zero_MD, zero_MD, rest_M4)
    if tiling.of_queries:
        own_scale, own_value_scale = gl.load(query_scales + own_place), 1.0
        of_rows = (gl.load(shifts + at_M), gl.load(deltas + at_M))
    else:
        own_scale, own_value_scale = gl.load(key_scales + own_place), gl.load(value_scales + own_place)
        of_rows = (0.0, 0.0)

    mbarrier.wait(own_filled, 0)
    own = (slots[0].index(group), slots[1].index(group))
    score_MN, change_MN = _begin(own, slots, filled, 0, layout_MN, tiling)
    begun = warpgroup_mma_wait(0, deps=(score_MN, change_MN))
    for index in range(0, steps - 1):
        scales = _scales(own_scale, own_value_scale, numbers, others + index // per, tiling)
        begun, sums = _finish(
            own, begun, slots, filled, free, index, scales, of_rows, other_length, sums,
            layout_MN, layout_MD, False, tiling,
        )  # fmt: skip
    scales = _scales(own_scale, own_value_scale, numbers, others + (steps - 1) // per, tiling)
    begun, sums = _finish(
        own, begun, slots, filled, free, steps - 1, scales, of_rows, other_length, sums,
        layout_MN, layout_MD, True, tiling,
    )  # fmt: skip

    first_MD, second_MD, rest_M4 = sums
    first_scales, second_scales = channel_scales
    first_out, second_out = outs
    rows_of_MD: gl.constexpr = gl.SliceLayout(1, layout_MD)
    channel_D = gl.arange(0, tiling.width, layout=gl.SliceLayout(0, layout_MD))
    token_M = first + group * tiling.rows + gl.arange(0, tiling.rows, layout=rows_of_MD)
    inside_M1 = gl.expand_dims(token_M < length, 1)
    place_M = ((sample.to(gl.int64) * length + token_M) * heads + head) * tiling.width
    place_MD = gl.expand_dims(place_M, 1) + gl.expand_dims(channel_D, 0)
    if tiling.of_queries:
        rest_M = gl.convert_layout(gl.sum(rest_M4, axis=1), layout_M) / gl.load(totals + at_M)
        gl.store(deltas + at_M, of_rows[1] + rest_M)  # for the other kernel
        second_MD -= first_MD * gl.expand_dims(gl.convert_layout(rest_M, rows_of_MD), 1)
        second_MD *= gl.expand_dims(gl.load(factors + sample_head * padded + token_M), 1)
    else:
        scale_D = gl.load(first_scales + sample_head * tiling.width + channel_D)
        first_MD *= gl.expand_dims(scale_D, 0)
        gl.store(first_out + place_MD, first_MD.to(first_out.dtype.element_ty), mask=inside_M1)
    second_MD *= gl.expand_dims(gl.load(second_scales + sample_head * tiling.width + channel_D), 0)
    gl.store(second_out + place_MD, second_MD.to(second_out.dtype.element_ty), mask=inside_M1)


# else lengths of 1 and multiples of 16 would each be compiled separately, for nothing
@gluon.jit(do_not_specialize=["length", "other_length", "padded", "heads"])
def _differentiate(
    own_tiles, own_change_tiles, score_tiles, change_tiles, first_tiles, second_tiles, shift_tiles, delta_tiles,
    query_scales, key_scales, value_scales, shifts, deltas, factors, totals, first_scales, second_scales,
    first_out, second_out, length, other_length, padded, heads,
    tiling: gl.constexpr, registers: gl.constexpr, loaders: gl.constexpr,
):  # fmt: skip
    number, sample_head = gl.program_id(0), gl.program_id(1)
    sample, head = sample_head // heads, sample_head % heads
    stages: gl.constexpr = tiling.stages
    groups: gl.constexpr = tiling.groups
    first = number * (groups * tiling.rows)
    first_slots = _slots(first_tiles, stages)
    second_slots, shift_slots, delta_slots = first_slots, first_slots, first_slots
    if not tiling.of_queries:
        second_slots = _slots(second_tiles, stages)
        shift_slots, delta_slots = _slots(shift_tiles, stages), _slots(delta_tiles, stages)
    slots = (
        _slots(own_tiles, groups), _slots(own_change_tiles, groups),
        _slots(score_tiles, stages), _slots(change_tiles, stages),
        first_slots, second_slots, shift_slots, delta_slots,
    )  # fmt: skip
    own_filled = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    filled = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    mbarrier.init(own_filled, count=1)
    for stage in gl.static_range(stages):
        mbarrier.init(filled.index(stage), count=1)
        mbarrier.init(free.index(stage), count=groups)
    fence_async_shared()
    tiles = (
        own_tiles, own_change_tiles, score_tiles, change_tiles, first_tiles, second_tiles, shift_tiles, delta_tiles,
    )  # fmt: skip
    barriers = (own_filled, filled, free)
    numbers = (query_scales, key_scales, value_scales, shifts, deltas, factors, totals)
    channel_scales, outs = (first_scales, second_scales), (first_out, second_out)
    place = (first, length, other_length, padded, sample, head, heads)
    column, across_row = head * tiling.width, sample_head * tiling.width
    at = (sample * length + first, sample * other_length, across_row, column, sample_head)
    steps = gl.cdiv(other_length, tiling.block)
    gl.warp_specialize(
        [
            (
                _differentiate_group,
                (slots, barriers, numbers, channel_scales, outs, place, gl.constexpr(0), tiling),
            ),
            (
                _differentiate_group,
                (slots, barriers, numbers, channel_scales, outs, place, gl.constexpr(1), tiling),
            ),
            (_load, (tiles, slots, barriers, at, steps, tiling)),
        ],
        [4, 1],
        [registers, loaders],
    )


def differentiate_queries(
    q_codes: Tensor, g_codes: Tensor, k_codes: Tensor, v_codes: Tensor, k_turned: Tensor,
    numbers: Numbers, k_channels: Tensor, q_grad: Tensor, k_length: int,
) -> None:  # fmt: skip
    """Write the gradient to queries [B, L, H, D], and how much more is to be taken from each query's changes into
    `numbers.deltas`. Codes: rows of all heads [B·L, H·D]; turned ones [B·H·D, whole blocks]."""
    turned, channels, outs = (k_turned, k_turned), (k_channels, k_channels), (q_grad, q_grad)
    _launch(True, (q_codes, g_codes), (k_codes, v_codes), turned, numbers, channels, outs, k_length)


def differentiate_keys(
    k_codes: Tensor, v_codes: Tensor, q_codes: Tensor, g_codes: Tensor, g_turned: Tensor, q_turned: Tensor,
    numbers: Numbers, g_channels: Tensor, q_channels: Tensor, v_grad: Tensor, k_grad: Tensor, q_length: int,
) -> None:  # fmt: skip
    """Write the gradients to values and keys [B, L, H, D]; afterwards, since it reads what the other one writes."""
    turned, channels, outs = (g_turned, q_turned), (g_channels, q_channels), (v_grad, k_grad)
    _launch(False, (k_codes, v_codes), (q_codes, g_codes), turned, numbers, channels, outs, q_length)


def _launch(
    of_queries: bool, own: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor], turned: tuple[Tensor, Tensor],
    numbers: Numbers, channels: tuple[Tensor, Tensor], outs: tuple[Tensor, Tensor], other_length: int,
) -> None:  # fmt: skip
    samples, length, heads, width = outs[0].shape
    tiling = Tiling(of_queries, width)
    tiles = (
        *(_tiles(one, tiling.rows, width) for one in own),
        *(_tiles(one, tiling.block, width) for one in others),
        *(_tiles(one, width, tiling.block) for one in turned),
        *(_notes(one, tiling.block) for one in (numbers.shifts, numbers.deltas)),
    )
    with torch.cuda.device(outs[0].device):
        _differentiate[(cdiv(length, BLOCK), samples * heads)](
            *tiles, *numbers, *channels, *outs, length, other_length, numbers.shifts.shape[-1], heads,
            tiling=tiling, registers=_REGISTERS, loaders=_LOADERS, num_warps=4,
        )  # fmt: skip


def _notes(numbers: Tensor, columns: int) -> TensorDescriptor:
    """A row of numbers, one per query, that the copy engine loads beside a tile."""
    return TensorDescriptor.from_tensor(numbers, [1, columns], gl.NVMMASharedLayout(0, 32, 2))
