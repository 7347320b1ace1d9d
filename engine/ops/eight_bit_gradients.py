"""Gradients of attention in 8 bits (ops/eight_bit_attention.py), for training: on an H100 in 0.83 to 0.89 of the time
of cuDNN's in bf16.

With scores s, weights w of all keys, results o = w v and their gradient g (FlashAttention's P, O and dO; c, t and delta
are its dP, dS and D):

    gradient to v = w^T g,    changes c = g v^T,    terms t = w (c - delta), with delta = g·o,
    gradient to q = t k / sqrt(D),    gradient to k = t^T q / sqrt(D)

Scores and changes come from int8 codes: of q, of k and v minus their means, with a scale per block, and of g with a
scale per query. Weights and terms are float8, relative to the largest weight of their query and to terms that are rare;
so what they are summed with, float8 codes with a scale per channel, has those factors of each query in it. Gradients
are about 4 % off, as such numbers are. Those to keys with a very small part of the weights are further off: where one
of 32,768 keys has half of the weight, a median other key's is 20 % off, and the gradient to all keys together 4 %.

The terms of a query sum up to 0, rounded ones do not, and what is left would be multiplied with the mean of the keys
that the query attends to, which may be many times the gradient. So w k is computed as well, and that much of it taken
away. This also makes up for results that are rounded: where keys have a large mean, these gradients are closer to
exact ones than cuDNN's in bf16 (benchmarks/optimisations.md).

On Hopper in the kernels of ops/eight_bit_gradients_gluon.py, on a CPU as a formula. Given up: other GPUs.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from .eight_bit_attention import (
    LARGEST_CODE,
    LARGEST_VALUE,
    QUERIES_AT_A_TIME,
    SMALLEST_SCALE,
    WEIGHT_BITS,
    WIDTHS,
    block_codes,
    in_float8,
    row_codes,
    score_codes,
    statistics,
    with_statistics,
)
from .hopper_attention import can_run

SMALLEST = 1e-30
"""Scale of codes of gradients, which may be very small numbers."""
_RARE = 4
"""Vectors of many numbers are seldom parallel: a typical product is an eleventh of the largest that is possible. Terms
that are larger than a quarter of it become the largest code, so that those of small weights keep digits."""
_LARGEST_DIFFERENCE = 0.05  # from the formula: a digit of a float8 code may differ here and there
Gradients = tuple[Tensor, Tensor, Tensor]


@functools.cache
def missing(device: torch.device) -> str | None:
    """Why the kernels cannot run on this device, in a few words; None if they can, or need not (on a CPU).

    Takes up to a minute the first time on a machine, when they are compiled. To be asked where attention in 8 bits can
    run without gradients.
    """
    if device.type == "cpu":
        return None
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 9:
        return "its gradients have kernels for H100 and H200 only"
    for width in WIDTHS:
        if not can_run(device, torch.int8, width):
            return "its kernel for H100 and H200 does not work with this version of Triton"
        try:
            difference = _try_out(device, width)
        except Exception as error:  # Triton's own errors have no common kind, nor have those of its compilers
            return f"Triton cannot compile the kernels of its gradients for this GPU: {error}"
        if not difference < _LARGEST_DIFFERENCE:
            return f"its gradients are wrong by {difference:.0%} here, with this version of Triton"
    return None


@torch.no_grad()
def _try_out(device: torch.device, width: int) -> float:
    """The largest relative difference of a gradient from the formula's, for two samples of tokens that are alike in
    groups, as neighbours in a video are: there rounding errors add up if they are not taken away."""
    own = torch.Generator("cpu").manual_seed(0)  # leaves the job's random numbers alone
    alike = torch.randn(2, 16, 2, width, generator=own, device="cpu")
    groups = [alike.repeat_interleave(times, 1) for times in (20, 25, 25, 20)]
    parts = [part + 0.5 * torch.randn(part.shape, generator=own, device="cpu") for part in groups]
    q, k, v, grad = (part.to(device, torch.bfloat16) for part in parts)
    given = (grad, q, k, v, *attend(q, k, v))
    pairs = zip(differentiate(*given), _formula(*(part.cpu() for part in given)), strict=True)
    return max(float((one.cpu().float() - other.float()).norm() / other.float().norm()) for one, other in pairs)


def attend(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> tuple[Tensor, Tensor]:
    """(softmax(q k^T / sqrt(D)) v [B, L of q, H, D], what `differentiate` needs beside it [2·B, H, L of q] float32).

    On a GPU to be called only if nothing is `missing`.
    """
    if not q_BLHD.is_cuda:
        return with_statistics(q_BLHD, k_BLHD, v_BLHD)
    from .eight_bit_attention_triton import attend

    samples, length, heads, _ = q_BLHD.shape
    found = q_BLHD.new_empty((2 * samples, heads, length), dtype=torch.float32)
    return attend(q_BLHD, k_BLHD, v_BLHD, hopper=True, wanted=found), found


def differentiate(
    grad_BLHD: Tensor, q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, out_BLHD: Tensor, found: Tensor
) -> Gradients:
    """Gradients to q, k and v, in their types. `out_BLHD`, `found`: what `attend` gave for them."""
    if not q_BLHD.is_cuda:
        return _formula(grad_BLHD, q_BLHD, k_BLHD, v_BLHD, out_BLHD, found)
    from .eight_bit_gradients_triton import differentiate

    return differentiate(grad_BLHD, q_BLHD, k_BLHD, v_BLHD, out_BLHD, found)


def _formula(
    grad_BLHD: Tensor, q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, out_BLHD: Tensor, found: Tensor
) -> Gradients:
    """What the kernels compute, in PyTorch's own operations."""
    measured = statistics(k_BLHD, v_BLHD)
    width = q_BLHD.shape[-1]
    q_codes, q_scale, k_codes, k_scale = score_codes(q_BLHD, k_BLHD, measured.key_mean)
    q, grad, out = (part.float().transpose(1, 2) for part in (q_BLHD, grad_BLHD, out_BLHD))
    key = (k_BLHD.float() - measured.key_mean[:, None]).transpose(1, 2)
    value = (v_BLHD.float() - measured.value_mean[:, None]).transpose(1, 2)
    g_codes, g_scale = row_codes(grad, SMALLEST)
    v_codes, v_scale = block_codes(value)
    largest, total = (part[..., None] for part in found.chunk(2))
    delta = (grad * (out - measured.value_mean[:, :, None])).sum(-1, keepdim=True) / g_scale
    fit = fitting(g_codes.norm(dim=-1).amax(-1), value.norm(dim=-1).amax(-1))[..., None, None]
    factor = g_scale / total
    k_turned, k_channels = _channel_codes(key, measured.key_scale[:, :, None])
    q_turned, q_channels = _channel_codes(q * factor)
    g_turned, g_channels = _channel_codes(grad / total)

    back = 1 / (fit * 2**WEIGHT_BITS * math.sqrt(width))
    q_grad, k_grad, v_grad = torch.empty_like(q), torch.zeros_like(key), torch.zeros_like(value)
    for start in range(0, q.shape[2], QUERIES_AT_A_TIME):
        at = slice(start, start + QUERIES_AT_A_TIME)
        score_BHMN = q_codes[:, :, at] @ k_codes.mT * q_scale[:, :, at] * k_scale.mT
        weight_BHMN = torch.exp2(score_BHMN - largest[:, :, at] + WEIGHT_BITS)
        change_BHMN = g_codes[:, :, at] @ v_codes.mT * v_scale.mT
        term_BHMN = weight_BHMN * (change_BHMN - delta[:, :, at]) * fit
        weight_codes, term_codes = in_float8(weight_BHMN), in_float8(term_BHMN)
        rest = remainder(term_BHMN, total[:, :, at])
        q_grad[:, :, at] = (term_codes @ k_turned - rest * (weight_codes @ k_turned)) * factor[:, :, at]
        k_grad += in_float8(term_BHMN - rest * weight_BHMN).mT @ q_turned[:, :, at]
        v_grad += weight_codes.mT @ g_turned[:, :, at]
    found_grads = q_grad * k_channels * back, k_grad * q_channels * back, v_grad * g_channels / 2**WEIGHT_BITS
    parts = zip(found_grads, (q_BLHD, k_BLHD, v_BLHD), strict=True)
    q_grad, k_grad, v_grad = (grad.transpose(1, 2).to(part.dtype) for grad, part in parts)
    return q_grad, k_grad, v_grad


def remainder(term_BHMN: Tensor, total_BHM1: Tensor) -> Tensor:
    """What is left in the sum of a query's terms, for each unit of its weights."""
    return term_BHMN.sum(-1, keepdim=True) / (total_BHM1 * 2**WEIGHT_BITS)


def fitting(gradient: Tensor, value: Tensor) -> Tensor:
    """What terms are multiplied with before they become float8 codes, from the largest norms of the codes of a query's
    gradient and of a value. But for `_RARE` no term could exceed the largest code: results are means of values, so
    that delta is no larger than a product can be."""
    longest = gradient.clamp(min=1) * value.clamp(min=LARGEST_CODE * SMALLEST_SCALE)
    return LARGEST_VALUE * _RARE / (2 * 2**WEIGHT_BITS * longest)


def _channel_codes(rows_BHLD: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """float8 codes (as floats) and the scale of each channel."""
    if scale is None:
        scale = turned_scale(rows_BHLD.abs().amax(2, keepdim=True))
    return in_float8(rows_BHLD / scale), scale


def turned_scale(largest: Tensor) -> Tensor:
    """The scale with which this number becomes the largest code."""
    return (largest / LARGEST_VALUE).clamp(min=SMALLEST)
