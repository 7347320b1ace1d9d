"""The kernel of ops/hopper_attention.py and, on Hopper, of ops/eight_bit_attention.py. Importing needs Triton's Gluon.

Warps have roles, which is FlashAttention-3's idea (Shah et al., arXiv 2407.08608): one warp of a program loads keys and
values with the copy engine, and three warpgroups attend, for 64 queries each, so that one's softmax overlaps with
another's products. Triton's own language cannot express roles; Gluon, which is below it, can, but needs register
layouts and barriers written out.

In 16 bits scores are q·k, and their logsumexp is written as well. In 8 bits they come from int8 codes, with a scale for
each query and each block of keys; values are transposed float8 codes, in the order of `key_at`; for gradients the
largest score of each query and its sum of weights are written.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from triton import cdiv
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma, warpgroup_mma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .eight_bit_attention import BLOCK, WEIGHT_BITS, Statistics, score_factor

_REGISTERS, _LOADERS = 160, 24
"""Registers per thread: of the warps that attend, of the one that loads."""


@dataclass(frozen=True)
class Tiling:
    """What a kernel is compiled for: numbers in `codes` or in 16 bits, channels of a head, queries of a group, groups,
    keys of a block, blocks of keys in shared memory. Fastest of those tried: benchmarks/optimisations.md."""

    codes: bool
    width: int
    rows: int = 64
    groups: int = 3
    block: int = BLOCK
    stages: int = 2


@gluon.jit
def _ring(tiles, stages: gl.constexpr, readers: gl.constexpr):
    """Shared memory for `stages` tiles, each with a barrier that says it is filled and one that says it is free."""
    slots = gl.allocate_shared_memory(tiles.dtype, [stages] + tiles.block_shape, tiles.layout)
    filled = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(stages):
        mbarrier.init(filled.index(stage), count=1)
        mbarrier.init(free.index(stage), count=readers)
    return slots, filled, free


@gluon.jit
def _fetch(tiles, row, column, ring, index, stages: gl.constexpr):
    """Start to load the ring's `index`-th tile once all readers have released its slot."""
    slots, filled, free = ring
    slot = index % stages
    mbarrier.wait(free.index(slot), ((index // stages) & 1) ^ 1)
    mbarrier.expect(filled.index(slot), tiles.block_type.nbytes)
    tma.async_copy_global_to_shared(tiles, [row, column], filled.index(slot), slots.index(slot))


@gluon.jit
def _filled(ring, index, stages: gl.constexpr):
    """The ring's `index`-th tile; waits until it is loaded."""
    slots, filled, _ = ring
    mbarrier.wait(filled.index(index % stages), (index // stages) & 1)
    return slots.index(index % stages)


@gluon.jit
def _release(ring, index, stages: gl.constexpr):
    _, _, free = ring
    mbarrier.arrive(free.index(index % stages), count=1)


@gluon.jit
def _load(tiles, rings, q_row, k_row, v_row, column, blocks, tiling: gl.constexpr):
    """One warp: the queries of all groups, then keys and values block by block."""
    q_tiles, k_tiles, v_tiles = tiles
    q_ring, k_ring, v_ring = rings
    groups: gl.constexpr = tiling.groups
    for group in gl.static_range(groups):
        _fetch(q_tiles, q_row + group * tiling.rows, column, q_ring, group, groups)
    for index in range(blocks):
        key = index * tiling.block
        _fetch(k_tiles, k_row + key, column, k_ring, index, tiling.stages)
        if tiling.codes:
            _fetch(v_tiles, v_row, key, v_ring, index, tiling.stages)
        else:
            _fetch(v_tiles, k_row + key, column, v_ring, index, tiling.stages)


@gluon.jit
def _operand(weight_MN, layout: gl.constexpr, tiling: gl.constexpr):
    """Weights in the registers from which the product with values takes them. Codes stay where they are: values have
    another order instead (`key_at`), which saves 48 shuffles and selections per block."""
    if tiling.codes:
        apart: gl.constexpr = [tiling.rows, tiling.block // 16, 2, 4, 2]
        weight_MN = weight_MN.reshape(apart).permute([0, 1, 3, 2, 4]).reshape([tiling.rows, tiling.block])
    return gl.convert_layout(weight_MN, gl.DotOperandLayout(0, layout, 4 if tiling.codes else 2))


@gluon.jit
def _add_block(
    q_MD, k_ring, v_ring, index, scale_M, k_length, found_MD, largest_M, total_M,
    bits: gl.constexpr, layout_MN: gl.constexpr, masked: gl.constexpr, tiling: gl.constexpr,
):  # fmt: skip
    """Add a block of keys; returns the weighted values so far, the largest score and the sum of weights."""
    layout_MD: gl.constexpr = found_MD.type.layout
    none_MN = gl.full([tiling.rows, tiling.block], 0, gl.int32 if tiling.codes else gl.float32, layout=layout_MN)
    k_ND = _filled(k_ring, index, tiling.stages)
    score_MN = warpgroup_mma(q_MD, k_ND.permute((1, 0)), none_MN, use_acc=False).to(gl.float32)
    _release(k_ring, index, tiling.stages)
    if masked:
        key_N = index * tiling.block + gl.arange(0, tiling.block, layout=gl.SliceLayout(0, layout_MN))
        score_MN = gl.where(gl.expand_dims(key_N < k_length, 0), score_MN, float("-inf"))
    reached_M = gl.maximum(largest_M, gl.max(score_MN, axis=1) * scale_M)
    weight_MN = gl.exp2(score_MN * gl.expand_dims(scale_M, 1) - gl.expand_dims(reached_M - bits, 1))
    fading_M = gl.exp2(largest_M - reached_M)
    total_M = total_M * fading_M + gl.sum(weight_MN, axis=1)
    found_MD = found_MD * gl.expand_dims(gl.convert_layout(fading_M, gl.SliceLayout(1, layout_MD)), 1)
    weight_MN = _operand(weight_MN.to(v_ring[0].dtype), layout_MD, tiling)
    values = _filled(v_ring, index, tiling.stages)
    if tiling.codes:
        values = values.permute((1, 0))
    found_MD = warpgroup_mma(weight_MN, values, found_MD)
    _release(v_ring, index, tiling.stages)
    return found_MD, reached_M, total_M


@gluon.jit
def _attend_group(rings, numbers, out, place, group: gl.constexpr, bits: gl.constexpr, tiling: gl.constexpr):
    """Four warps: `rows` queries of a head, block by block of keys."""
    q_ring, k_ring, v_ring = rings
    factor, query_scales, key_scales, value_scales, value_means, statistics = numbers
    first, q_length, k_length, sample, head, heads = place
    depth: gl.constexpr = 32 if tiling.codes else 16
    layout_MN: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, tiling.block, depth])
    layout_MD: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, tiling.width, depth])
    layout_M: gl.constexpr = gl.SliceLayout(1, layout_MN)
    sample_head = sample * heads + head
    blocks = gl.cdiv(k_length, tiling.block)
    whole = k_length // tiling.block
    token_M = first + group * tiling.rows + gl.arange(0, tiling.rows, layout=layout_M)
    row_M = sample_head.to(gl.int64) * q_length + token_M
    scale_M = gl.full([tiling.rows], factor, gl.float32, layout=layout_M)
    if tiling.codes:
        q_scale_M = gl.load(query_scales + row_M, mask=token_M < q_length, other=1.0)

    largest_M = gl.full([tiling.rows], float("-inf"), gl.float32, layout=layout_M)
    total_M = gl.full([tiling.rows], 0.0, gl.float32, layout=layout_M)
    found_MD = gl.full([tiling.rows, tiling.width], 0.0, gl.float32, layout=layout_MD)
    q_MD = _filled(q_ring, group, tiling.groups)
    for index in range(0, whole):
        if tiling.codes:
            scale_M = q_scale_M * gl.load(key_scales + sample_head * blocks + index)
        found_MD, largest_M, total_M = _add_block(
            q_MD, k_ring, v_ring, index, scale_M, k_length, found_MD, largest_M, total_M,
            bits, layout_MN, False, tiling,
        )  # fmt: skip
    if whole < blocks:
        if tiling.codes:
            scale_M = q_scale_M * gl.load(key_scales + sample_head * blocks + whole)
        found_MD, largest_M, total_M = _add_block(
            q_MD, k_ring, v_ring, whole, scale_M, k_length, found_MD, largest_M, total_M,
            bits, layout_MN, True, tiling,
        )  # fmt: skip

    channel_D = gl.arange(0, tiling.width, layout=gl.SliceLayout(0, layout_MD))
    found_MD = found_MD / gl.expand_dims(gl.convert_layout(total_M, gl.SliceLayout(1, layout_MD)), 1)
    if tiling.codes:
        at_D = sample_head * tiling.width + channel_D
        found_MD = found_MD * gl.expand_dims(gl.load(value_scales + at_D), 0)
        found_MD = found_MD + gl.expand_dims(gl.load(value_means + at_D), 0)
        if statistics is not None:
            totals = statistics + gl.num_programs(1).to(gl.int64) * q_length
            gl.store(statistics + row_M, largest_M, mask=token_M < q_length)
            gl.store(totals + row_M, total_M * 2.0**-bits, mask=token_M < q_length)
    else:
        natural_M = (largest_M + gl.log2(total_M)) * 0.6931471805599453
        gl.store(statistics + row_M, natural_M, mask=token_M < q_length)
    token_M = first + group * tiling.rows + gl.arange(0, tiling.rows, layout=gl.SliceLayout(1, layout_MD))
    place_M = ((sample.to(gl.int64) * q_length + token_M) * heads + head) * tiling.width
    place_MD = gl.expand_dims(place_M, 1) + gl.expand_dims(channel_D, 0)
    gl.store(out + place_MD, found_MD.to(out.dtype.element_ty), mask=gl.expand_dims(token_M < q_length, 1))


# else lengths of 1 and multiples of 16 would each be compiled separately, for nothing
@gluon.jit(do_not_specialize=["q_length", "k_length", "heads"])
def _attend(
    q_tiles, k_tiles, v_tiles, factor, query_scales, key_scales, value_scales, value_means, out, statistics,
    q_length, k_length, heads,
    bits: gl.constexpr, tiling: gl.constexpr, registers: gl.constexpr, loaders: gl.constexpr,
):  # fmt: skip
    """Three groups of queries of a head: [B, L, H, D]. In 16 bits also the logsumexp of the scores."""
    number, sample_head = gl.program_id(0), gl.program_id(1)
    sample, head = sample_head // heads, sample_head % heads
    first = number * (tiling.groups * tiling.rows)
    q_ring = _ring(q_tiles, tiling.groups, 1)
    k_ring = _ring(k_tiles, tiling.stages, tiling.groups)
    v_ring = _ring(v_tiles, tiling.stages, tiling.groups)
    tiles, rings = (q_tiles, k_tiles, v_tiles), (q_ring, k_ring, v_ring)
    fence_async_shared()
    numbers = (factor, query_scales, key_scales, value_scales, value_means, statistics)
    place = (first, q_length, k_length, sample, head, heads)
    q_row, k_row, v_row = sample * q_length + first, sample * k_length, sample_head * tiling.width
    blocks = gl.cdiv(k_length, tiling.block)
    gl.warp_specialize(
        [
            (_attend_group, (rings, numbers, out, place, gl.constexpr(0), bits, tiling)),
            (_attend_group, (rings, numbers, out, place, gl.constexpr(1), bits, tiling)),
            (_attend_group, (rings, numbers, out, place, gl.constexpr(2), bits, tiling)),
            (_load, (tiles, rings, q_row, k_row, v_row, head * tiling.width, blocks, tiling)),
        ],
        [4, 4, 1],
        [registers, registers, loaders],
    )


def attend(
    q_rows: Tensor, k_rows: Tensor, v_rows: Tensor, out_BLHD: Tensor, logsumexp_BHL: Tensor, k_length: int
) -> None:
    """In 16 bits, from rows of all heads [B·L, H·D]; outputs are contiguous."""
    factor = score_factor(out_BLHD.shape[-1])
    _launch(q_rows, k_rows, v_rows, factor, (None,) * 4, out_BLHD, logsumexp_BHL, k_length, codes=False)


def attend_codes(
    q_rows: Tensor, k_rows: Tensor, v_codes: Tensor, q_scales: Tensor, k_scales: Tensor, measured: Statistics,
    out_BLHD: Tensor, k_length: int, wanted: Tensor | None,
) -> None:  # fmt: skip
    """From codes: rows of all heads [B·L, H·D], values transposed [B·H·D, keys]; scales [B·H, L] and [B·H, blocks].
    `wanted`: where each query's largest score and sum of weights go, [2·B, H, L] float32."""
    scales = (q_scales, k_scales, measured.value_scale, measured.value_mean)
    _launch(q_rows, k_rows, v_codes, 1.0, scales, out_BLHD, wanted, k_length, codes=True)


def _launch(
    q: Tensor, k: Tensor, v: Tensor, factor: float, scales: tuple[Tensor | None, ...],
    out_BLHD: Tensor, statistics: Tensor | None, k_length: int, *, codes: bool,
) -> None:  # fmt: skip
    samples, q_length, heads, width = out_BLHD.shape
    tiling = Tiling(codes, width)
    v_tile = (width, tiling.block) if codes else (tiling.block, width)
    with torch.cuda.device(out_BLHD.device):
        _attend[(cdiv(q_length, tiling.groups * tiling.rows), samples * heads)](
            _tiles(q, tiling.rows, width), _tiles(k, tiling.block, width), _tiles(v, *v_tile),
            factor, *scales, out_BLHD, statistics, q_length, k_length, heads,
            bits=WEIGHT_BITS if codes else 0, tiling=tiling, registers=_REGISTERS, loaders=_LOADERS, num_warps=4,
        )  # fmt: skip


def _tiles(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """A matrix that the copy engine loads in tiles, swizzled as products read them from shared memory."""
    size = matrix.element_size()
    layout = gl.NVMMASharedLayout(swizzle_byte_width=min(128, columns * size), element_bitwidth=8 * size, rank=2)
    return TensorDescriptor.from_tensor(matrix, [rows, columns], layout)
