"""The Triton kernels of ops/eight_bit_attention.py. Importing needs Triton.

Codes are made by separate kernels, those of queries too: what a program makes itself stays in registers, from which
products are slower than from shared memory (35.7 ms instead of 30.3, 32,760 tokens, 40 heads, H200).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .eight_bit_attention import (
    BLOCK,
    LARGEST_CODE,
    LARGEST_VALUE,
    SMALLEST_SCALE,
    WEIGHT_BITS,
    Statistics,
    channel_scale,
    key_at,
    score_factor,
)
from .fp8 import CODES
from .hopper_attention import can_run

_QUERIES, _WARPS, _STAGES = 64, 4, 2
"""Of a program of `_attend`: three of them share a multiprocessor of an H100, so that one's softmax overlaps with
another's products. Fastest of eight such choices (benchmarks/h200_eight_bit_attention.json)."""
_MEASURED = 1024  # tokens per program of `_measure`

_key_at = triton.jit(key_at)


@triton.jit
def _tokens(values, sample, head, row, length, of_sample, of_token, of_head, width: tl.constexpr):
    """These rows of a head as float32, 0 past the last one. The `of_` numbers are strides."""
    at = sample * of_sample + row * of_token + head * of_head + tl.arange(0, width)[None, :]
    return tl.load(values + at, mask=row < length, other=0.0).to(tl.float32)


@triton.jit
def _place(sample, head, row, length, heads, width: tl.constexpr):
    """Where these rows of a head are in [B, L, H, D] without gaps."""
    return ((sample * length + row) * heads + head) * width + tl.arange(0, width)[None, :]


@triton.jit
def _measure(
    keys, values, found, length, heads, k_sample, k_token, k_head, v_sample, v_token, v_head,
    tokens: tl.constexpr, block: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """For `tokens` tokens of a head: sums, least and greatest numbers of keys, then of values; [6, parts, B·H, D]."""
    part, sample_head = tl.program_id(0), tl.program_id(1)
    sample, head = (sample_head // heads).to(tl.int64), sample_head % heads
    each = tl.num_programs(0) * tl.num_programs(1) * width
    at = found + (part * tl.num_programs(1) + sample_head) * width + tl.arange(0, width)
    _measure_one(keys, at, each, sample, head, part * tokens, length, k_sample, k_token, k_head, tokens, block, width)
    _measure_one(
        values, at + 3 * each, each, sample, head, part * tokens, length, v_sample, v_token, v_head,
        tokens, block, width,
    )  # fmt: skip


@triton.jit
def _measure_one(
    numbers, found, each, sample, head, first, length, of_sample, of_token, of_head,
    tokens: tl.constexpr, block: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    total = tl.zeros([width], tl.float32)
    least = tl.full([width], float("inf"), tl.float32)
    greatest = tl.full([width], float("-inf"), tl.float32)
    for start in range(0, tokens, block):
        row = (first + start + tl.arange(0, block)).to(tl.int64)[:, None]
        inside = row < length
        number = _tokens(numbers, sample, head, row, length, of_sample, of_token, of_head, width)
        total += tl.sum(number, axis=0)
        least = tl.minimum(least, tl.min(tl.where(inside, number, float("inf")), axis=0))
        greatest = tl.maximum(greatest, tl.max(tl.where(inside, number, float("-inf")), axis=0))
    tl.store(found, total)
    tl.store(found + each, least)
    tl.store(found + 2 * each, greatest)


@triton.jit
def _block_scale(values, largest: tl.constexpr, smallest: tl.constexpr):
    return tl.maximum(tl.max(tl.max(tl.abs(values), axis=1), axis=0) / largest, smallest)


@triton.jit
def _rounded(values):
    return tl.floor(values + 0.5).to(tl.int8)


@triton.jit
def _quantize_queries(
    queries, codes, scales, length, heads, q_sample, q_token, q_head, score_factor,
    largest: tl.constexpr, smallest: tl.constexpr, block: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """For a block of a head: int8 codes [B, L, H, D], and the factor of its scores, for each query [B·H, L]."""
    number, sample_head = tl.program_id(0), tl.program_id(1)
    sample, head = (sample_head // heads).to(tl.int64), sample_head % heads
    token = number * block + tl.arange(0, block)
    row = token.to(tl.int64)[:, None]
    query = _tokens(queries, sample, head, row, length, q_sample, q_token, q_head, width)
    scale = _block_scale(query, largest, smallest)
    scale_M = tl.zeros([block], tl.float32) + scale * score_factor
    tl.store(scales + sample_head.to(tl.int64) * length + token, scale_M, mask=token < length)
    tl.store(codes + _place(sample, head, row, length, heads, width), _rounded(query / scale), mask=row < length)


@triton.jit
def _quantize(
    keys, values, key_means, value_means, value_scales, key_codes, key_scales, value_codes, length, heads,
    k_sample, k_token, k_head, v_sample, v_token, v_head,
    largest: tl.constexpr, largest_value: tl.constexpr, smallest: tl.constexpr,
    block: tl.constexpr, width: tl.constexpr, ordered: tl.constexpr,
):  # fmt: skip
    """For a block of a head: int8 codes of keys [B, L, H, D] with a scale [B·H, blocks]; float8 codes of values,
    transposed to [B·H, D, blocks · block], `ordered` as `key_at` says. Past the last token values are 0."""
    number, sample_head = tl.program_id(0), tl.program_id(1)
    sample, head = (sample_head // heads).to(tl.int64), sample_head % heads
    token = number * block + tl.arange(0, block)
    row = token.to(tl.int64)[:, None]
    inside = row < length
    at = sample_head * width + tl.arange(0, width)

    key = _tokens(keys, sample, head, row, length, k_sample, k_token, k_head, width)
    key = tl.where(inside, key - tl.load(key_means + at)[None, :], 0.0)
    scale = _block_scale(key, largest, smallest)
    tl.store(key_scales + sample_head * tl.num_programs(0) + number, scale)
    tl.store(key_codes + _place(sample, head, row, length, heads, width), _rounded(key / scale), mask=inside)

    if ordered:
        row = (number * block + _key_at(tl.arange(0, block))).to(tl.int64)[:, None]
        inside = row < length
    value = _tokens(values, sample, head, row, length, v_sample, v_token, v_head, width)
    value = (value - tl.load(value_means + at)[None, :]) / tl.load(value_scales + at)[None, :]
    value = tl.minimum(tl.maximum(tl.where(inside, value, 0.0), -largest_value), largest_value)
    across = at.to(tl.int64)[:, None] * (tl.num_programs(0) * block) + token[None, :]
    tl.store(value_codes + across, tl.trans(value).to(value_codes.dtype.element_ty))


@triton.jit
def _attend(
    query_tiles, key_tiles, value_tiles, query_scales, key_scales, value_scales, value_means, out,
    q_length, k_length, heads,
    bits: tl.constexpr, tokens: tl.constexpr, block: tl.constexpr, width: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    """`tokens` queries of a head, block by block of keys: [B, L, H, D]."""
    number, sample_head = tl.program_id(0), tl.program_id(1)
    sample, head = sample_head // heads, sample_head % heads
    token = number * tokens + tl.arange(0, tokens)
    q_MD = query_tiles.load([sample * q_length + number * tokens, head * width])
    q_scale_M = tl.load(query_scales + sample_head.to(tl.int64) * q_length + token, mask=token < q_length, other=0.0)

    largest_M = tl.full([tokens], float("-inf"), tl.float32)
    total_M = tl.zeros([tokens], tl.float32)
    found_MD = tl.zeros([tokens, width], tl.float32)
    blocks = tl.cdiv(k_length, block)
    whole = k_length // block
    for index in tl.range(0, whole, num_stages=stages):
        k_ND = key_tiles.load([sample * k_length + index * block, head * width])
        scale_M = q_scale_M * tl.load(key_scales + sample_head * blocks + index)
        score_MN = tl.dot(q_MD, tl.trans(k_ND), out_dtype=tl.int32).to(tl.float32)
        reached_M = tl.maximum(largest_M, tl.max(score_MN, axis=1) * scale_M)
        weight_MN = tl.exp2(score_MN * scale_M[:, None] - (reached_M - bits)[:, None])
        fading_M = tl.exp2(largest_M - reached_M)
        total_M = total_M * fading_M + tl.sum(weight_MN, axis=1)
        v_DN = value_tiles.load([sample_head * width, index * block])
        # a separate sum for each block: float8 products are accumulated in less than float32
        found_MD = found_MD * fading_M[:, None] + tl.dot(weight_MN.to(v_DN.dtype), tl.trans(v_DN))
        largest_M = reached_M
    if whole < blocks:  # the same for a last block of fewer keys
        k_ND = key_tiles.load([sample * k_length + whole * block, head * width])
        scale_M = q_scale_M * tl.load(key_scales + sample_head * blocks + whole)
        score_MN = tl.dot(q_MD, tl.trans(k_ND), out_dtype=tl.int32).to(tl.float32) * scale_M[:, None]
        counts = whole * block + tl.arange(0, block) < k_length
        score_MN = tl.where(counts[None, :], score_MN, float("-inf"))
        reached_M = tl.maximum(largest_M, tl.max(score_MN, axis=1))
        weight_MN = tl.exp2(score_MN - (reached_M - bits)[:, None])
        fading_M = tl.exp2(largest_M - reached_M)
        total_M = total_M * fading_M + tl.sum(weight_MN, axis=1)
        v_DN = value_tiles.load([sample_head * width, whole * block])
        found_MD = found_MD * fading_M[:, None] + tl.dot(weight_MN.to(v_DN.dtype), tl.trans(v_DN))

    at = sample_head * width + tl.arange(0, width)
    found_MD = found_MD * tl.load(value_scales + at)[None, :] / total_M[:, None] + tl.load(value_means + at)[None, :]
    row = token.to(tl.int64)[:, None]
    place = _place(sample.to(tl.int64), head, row, q_length, heads, width)
    tl.store(out + place, found_MD.to(out.dtype.element_ty), mask=row < q_length)


def attend(
    q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, *, hopper: bool | None = None, wanted: Tensor | None = None
) -> Tensor:
    """As `eight_bit_attention`, on the CUDA device of q. `hopper`: with Hopper's kernel; None: if that can run.
    `wanted`: where that writes what gradients need (ops/eight_bit_gradients.py)."""
    q_BLHD, k_BLHD, v_BLHD = (part if part.stride(-1) == 1 else part.contiguous() for part in (q_BLHD, k_BLHD, v_BLHD))
    samples, q_length, heads, width = q_BLHD.shape
    k_length = k_BLHD.shape[1]
    blocks, each = triton.cdiv(k_length, BLOCK), samples * heads
    if hopper is None:
        hopper = can_run(q_BLHD.device, torch.int8, width)
    with torch.cuda.device(q_BLHD.device):
        found = measured(k_BLHD, v_BLHD)
        q_codes = torch.empty(q_BLHD.shape, device=q_BLHD.device, dtype=torch.int8)
        q_scales = found.value_scale.new_empty(each, q_length)
        _quantize_queries[(triton.cdiv(q_length, BLOCK), each)](
            q_BLHD, q_codes, q_scales, q_length, heads, *q_BLHD.stride()[:3], score_factor(width),
            largest=LARGEST_CODE, smallest=SMALLEST_SCALE, block=BLOCK, width=width,
        )  # fmt: skip
        k_codes = torch.empty(k_BLHD.shape, device=q_BLHD.device, dtype=torch.int8)
        k_scales = found.value_scale.new_empty(each, blocks)
        v_codes = torch.empty(each * width, blocks * BLOCK, device=q_BLHD.device, dtype=CODES)
        _quantize[(blocks, each)](
            k_BLHD, v_BLHD, found.key_mean, found.value_mean, found.value_scale,
            k_codes, k_scales, v_codes, k_length, heads,
            *k_BLHD.stride()[:3], *v_BLHD.stride()[:3],
            largest=LARGEST_CODE, largest_value=LARGEST_VALUE, smallest=SMALLEST_SCALE, block=BLOCK, width=width,
            ordered=hopper,
        )  # fmt: skip
        out = torch.empty(q_BLHD.shape, device=q_BLHD.device, dtype=v_BLHD.dtype)
        q_rows, k_rows = q_codes.view(-1, heads * width), k_codes.view(-1, heads * width)
        if hopper:
            from .hopper_attention_gluon import attend_codes

            attend_codes(q_rows, k_rows, v_codes, q_scales, k_scales, found, out, k_length, wanted)
            return out
        _attend[(triton.cdiv(q_length, _QUERIES), each)](
            _tiles(q_rows, _QUERIES, width), _tiles(k_rows, BLOCK, width), _tiles(v_codes, width, BLOCK),
            q_scales, k_scales, found.value_scale, found.value_mean, out, q_length, k_length, heads,
            bits=WEIGHT_BITS, tokens=_QUERIES, block=BLOCK, width=width, stages=_STAGES, num_warps=_WARPS,
        )  # fmt: skip
    return out


def measured(k_BLHD: Tensor, v_BLHD: Tensor) -> Statistics:
    """As `statistics`, reading keys and values once."""
    samples, length, heads, width = k_BLHD.shape
    parts = triton.cdiv(length, _MEASURED)
    found = torch.empty(6, parts, samples * heads, width, device=k_BLHD.device)
    _measure[(parts, samples * heads)](
        k_BLHD, v_BLHD, found, length, heads, *k_BLHD.stride()[:3], *v_BLHD.stride()[:3],
        tokens=_MEASURED, block=BLOCK, width=width,
    )  # fmt: skip
    means, scales = [], []
    for total, lowest, highest in found.view(2, 3, parts, samples, heads, width):
        means.append(total.sum(0) / length)
        scales.append(channel_scale(lowest.amin(0), highest.amax(0), means[-1]))
    return Statistics(*means, *scales)


def _tiles(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """A matrix that the kernel loads in tiles, by the copy engine if the GPU has one."""
    return TensorDescriptor.from_tensor(matrix, [rows, columns])
