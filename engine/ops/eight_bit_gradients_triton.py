"""The Triton kernels of ops/eight_bit_gradients.py, which make codes, and the order of its kernels. Importing needs
Triton."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .eight_bit_attention import BLOCK, LARGEST_CODE, LARGEST_VALUE, SMALLEST_SCALE, WEIGHT_BITS, score_factor
from .eight_bit_attention_triton import _block_scale, _key_at, _place, _rounded, _tokens, measured
from .eight_bit_gradients import SMALLEST, Gradients, fitting, turned_scale
from .fp8 import CODES

_WARPS = 8
_NEVER = tl.constexpr(1e30)
"""The shift of queries past the last one, whose weights are 2^(score - shift)."""


@triton.jit
def _quantize_queries(
    queries, grads, outs, value_means, found,
    query_codes, grad_codes, query_scales, shifts, deltas, factors, totals, norms, query_tops, grad_tops,
    length, padded, heads, score_factor,
    q_sample, q_token, q_head, g_sample, g_token, g_head, o_sample, o_token, o_head,
    bits: tl.constexpr, largest: tl.constexpr, smallest: tl.constexpr, smallest_grad: tl.constexpr,
    block: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """For a block of a head: int8 codes of queries and of gradients of results [B, L, H, D], the numbers of
    `eight_bit_gradients_gluon.Numbers` that are of queries, the largest norm of a gradient's codes [B·H, blocks], and
    the largest numbers of each channel that are to be turned [blocks, B·H, D]."""
    number, sample_head = tl.program_id(0), tl.program_id(1)
    blocks, each = tl.num_programs(0), tl.num_programs(1)
    sample, head = (sample_head // heads).to(tl.int64), sample_head % heads
    token = number * block + tl.arange(0, block)
    row = token.to(tl.int64)[:, None]
    inside = token < length
    at = sample_head.to(tl.int64) * length + token
    shift = tl.load(found + at, mask=inside, other=0.0)
    total = tl.load(found + each.to(tl.int64) * length + at, mask=inside, other=1.0)
    mean = tl.load(value_means + sample_head * width + tl.arange(0, width))[None, :]
    top = (number * each + sample_head).to(tl.int64) * width + tl.arange(0, width)
    place, padded_at = _place(sample, head, row, length, heads, width), sample_head.to(tl.int64) * padded + token

    grad = _tokens(grads, sample, head, row, length, g_sample, g_token, g_head, width)
    out = _tokens(outs, sample, head, row, length, o_sample, o_token, o_head, width)
    delta = tl.sum(grad * (out - mean), axis=1)
    scale = tl.maximum(tl.max(tl.abs(grad), axis=1) / largest, smallest_grad)
    codes = tl.floor(grad / scale[:, None] + 0.5)
    tl.store(grad_codes + place, codes.to(tl.int8), mask=row < length)
    tl.store(norms + sample_head * blocks + number, tl.sqrt(tl.max(tl.sum(codes * codes, axis=1), axis=0)))
    factor = scale / total
    tl.store(shifts + padded_at, tl.where(inside, shift - bits, _NEVER))
    tl.store(deltas + padded_at, tl.where(inside, delta / scale, 0.0))
    tl.store(factors + padded_at, factor)
    tl.store(totals + padded_at, total)
    tl.store(grad_tops + top, tl.max(tl.abs(grad / total[:, None]), axis=0))

    query = _tokens(queries, sample, head, row, length, q_sample, q_token, q_head, width)
    query_scale = _block_scale(query, largest, smallest)
    tl.store(query_scales + sample_head * blocks + number, query_scale * score_factor)
    tl.store(query_codes + place, _rounded(query / query_scale), mask=row < length)
    tl.store(query_tops + top, tl.max(tl.abs(query * factor[:, None]), axis=0))


@triton.jit
def _turn(numbers, scales, codes, sample_head, number, blocks, largest, block: tl.constexpr, width: tl.constexpr):
    """Write a block's numbers as float8 codes, transposed to [B·H, D, blocks · block]."""
    at = sample_head * width + tl.arange(0, width)
    numbers = tl.minimum(tl.maximum(numbers / tl.load(scales + at)[None, :], -largest), largest)
    across = at.to(tl.int64)[:, None] * (blocks * block) + (number * block + tl.arange(0, block))[None, :]
    tl.store(codes + across, tl.trans(numbers).to(codes.dtype.element_ty))


@triton.jit
def _turn_queries(
    queries, grads, factors, totals, query_scales, grad_scales, query_codes, grad_codes, length, padded, heads,
    q_sample, q_token, q_head, g_sample, g_token, g_head,
    largest: tl.constexpr, block: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """For a block of a head: what weights and terms are summed with for keys, in the order of `key_at`."""
    number, sample_head = tl.program_id(0), tl.program_id(1)
    blocks = tl.num_programs(0)
    sample, head = (sample_head // heads).to(tl.int64), sample_head % heads
    token = number * block + _key_at(tl.arange(0, block))
    row = token.to(tl.int64)[:, None]
    padded_at = sample_head.to(tl.int64) * padded + token
    query = _tokens(queries, sample, head, row, length, q_sample, q_token, q_head, width)
    query = query * tl.load(factors + padded_at)[:, None]
    _turn(query, query_scales, query_codes, sample_head, number, blocks, largest, block, width)
    grad = _tokens(grads, sample, head, row, length, g_sample, g_token, g_head, width)
    grad = grad / tl.load(totals + padded_at)[:, None]
    _turn(grad, grad_scales, grad_codes, sample_head, number, blocks, largest, block, width)


@triton.jit
def _quantize_keys(
    keys, values, key_means, value_means, turned_scales,
    key_codes, key_scales, turned_codes, value_codes, value_scales, norms, length, heads,
    k_sample, k_token, k_head, v_sample, v_token, v_head,
    largest: tl.constexpr, largest_value: tl.constexpr, smallest: tl.constexpr,
    block: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """For a block of a head, less their means: int8 codes of keys and values [B, L, H, D], a scale for each and the
    largest norm of a value [B·H, blocks]; float8 codes of keys, turned."""
    number, sample_head = tl.program_id(0), tl.program_id(1)
    blocks = tl.num_programs(0)
    sample, head = (sample_head // heads).to(tl.int64), sample_head % heads
    row = (number * block + tl.arange(0, block)).to(tl.int64)[:, None]
    inside = row < length
    channel = sample_head * width + tl.arange(0, width)
    key_mean, value_mean = tl.load(key_means + channel)[None, :], tl.load(value_means + channel)[None, :]
    place, block_at = _place(sample, head, row, length, heads, width), sample_head * blocks + number

    key = _tokens(keys, sample, head, row, length, k_sample, k_token, k_head, width)
    key = tl.where(inside, key - key_mean, 0.0)
    scale = _block_scale(key, largest, smallest)
    tl.store(key_scales + block_at, scale)
    tl.store(key_codes + place, _rounded(key / scale), mask=inside)

    value = _tokens(values, sample, head, row, length, v_sample, v_token, v_head, width)
    value = tl.where(inside, value - value_mean, 0.0)
    tl.store(norms + block_at, tl.sqrt(tl.max(tl.sum(value * value, axis=1), axis=0)))
    scale = _block_scale(value, largest, smallest)
    tl.store(value_scales + block_at, scale)
    tl.store(value_codes + place, _rounded(value / scale), mask=inside)

    row = (number * block + _key_at(tl.arange(0, block))).to(tl.int64)[:, None]
    key = _tokens(keys, sample, head, row, length, k_sample, k_token, k_head, width)
    key = tl.where(row < length, key - key_mean, 0.0)
    _turn(key, turned_scales, turned_codes, sample_head, number, blocks, largest_value, block, width)


def differentiate(
    grad_BLHD: Tensor, q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, out_BLHD: Tensor, found: Tensor
) -> Gradients:
    """As `eight_bit_gradients.differentiate`, on the CUDA device of q."""
    from .eight_bit_gradients_gluon import Numbers, differentiate_keys, differentiate_queries

    parts = (grad_BLHD, q_BLHD, k_BLHD, v_BLHD, out_BLHD)
    grad_BLHD, q_BLHD, k_BLHD, v_BLHD, out_BLHD = (
        part if part.stride(-1) == 1 else part.contiguous() for part in parts
    )
    samples, length, heads, width = q_BLHD.shape
    k_length, each, device = k_BLHD.shape[1], samples * heads, q_BLHD.device
    blocks, k_blocks = triton.cdiv(length, BLOCK), triton.cdiv(k_length, BLOCK)
    padded = blocks * BLOCK
    q_strides, g_strides, o_strides = (part.stride()[:3] for part in (q_BLHD, grad_BLHD, out_BLHD))

    def numbers(*shape: int) -> Tensor:
        return torch.empty(shape, device=device, dtype=torch.float32)

    def rows(tokens: int) -> Tensor:
        return torch.empty(samples * tokens, heads * width, device=device, dtype=torch.int8)

    def turned(tokens: int) -> Tensor:
        return torch.empty(each * width, tokens, device=device, dtype=CODES)

    with torch.cuda.device(device):
        means = measured(k_BLHD, v_BLHD)
        q_codes, g_codes, k_codes, v_codes = rows(length), rows(length), rows(k_length), rows(k_length)
        of = Numbers(
            numbers(each, blocks), numbers(each, k_blocks), numbers(each, k_blocks),
            *(numbers(each, padded) for _ in range(4)),
        )  # fmt: skip
        g_norms, v_norms = numbers(each, blocks), numbers(each, k_blocks)
        q_tops, g_tops = numbers(blocks, each, width), numbers(blocks, each, width)
        _quantize_queries[(blocks, each)](
            q_BLHD, grad_BLHD, out_BLHD, means.value_mean, found,
            q_codes, g_codes, of.query_scales, of.shifts, of.deltas, of.factors, of.totals, g_norms, q_tops, g_tops,
            length, padded, heads, score_factor(width), *q_strides, *g_strides, *o_strides,
            bits=WEIGHT_BITS, largest=LARGEST_CODE, smallest=SMALLEST_SCALE, smallest_grad=SMALLEST,
            block=BLOCK, width=width, num_warps=_WARPS,
        )  # fmt: skip
        k_turned = turned(k_blocks * BLOCK)
        _quantize_keys[(k_blocks, each)](
            k_BLHD, v_BLHD, means.key_mean, means.value_mean, means.key_scale,
            k_codes, of.key_scales, k_turned, v_codes, of.value_scales, v_norms, k_length, heads,
            *k_BLHD.stride()[:3], *v_BLHD.stride()[:3],
            largest=LARGEST_CODE, largest_value=LARGEST_VALUE, smallest=SMALLEST_SCALE, block=BLOCK, width=width,
            num_warps=_WARPS,
        )  # fmt: skip
        fit = fitting(g_norms.amax(1, keepdim=True), v_norms.amax(1, keepdim=True))
        back = 1 / (fit * 2**WEIGHT_BITS * math.sqrt(width))
        weighted = of._replace(
            value_scales=of.value_scales * fit, deltas=of.deltas * fit, totals=of.totals * 2**WEIGHT_BITS
        )
        q_grad = torch.empty(q_BLHD.shape, device=device, dtype=q_BLHD.dtype)
        k_channels = means.key_scale.view(each, width) * back
        differentiate_queries(q_codes, g_codes, k_codes, v_codes, k_turned, weighted, k_channels, q_grad, k_length)
        del k_turned
        q_channels, g_channels = (turned_scale(tops.amax(0)) for tops in (q_tops, g_tops))
        q_turned, g_turned = turned(padded), turned(padded)
        _turn_queries[(blocks, each)](
            q_BLHD, grad_BLHD, of.factors, of.totals, q_channels, g_channels, q_turned, g_turned,
            length, padded, heads, *q_strides, *g_strides,
            largest=LARGEST_VALUE, block=BLOCK, width=width, num_warps=_WARPS,
        )  # fmt: skip
        k_grad, v_grad = (torch.empty(part.shape, device=device, dtype=part.dtype) for part in (k_BLHD, v_BLHD))
        differentiate_keys(
            k_codes, v_codes, q_codes, g_codes, g_turned, q_turned,
            weighted, g_channels / 2**WEIGHT_BITS, q_channels * back, v_grad, k_grad, length,
        )  # fmt: skip
    return q_grad, k_grad, v_grad
