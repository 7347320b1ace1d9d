"""Attention in 16 bits by a kernel of our own for Hopper (H100, H200), where it takes 0.8 to 0.9 of cuDNN's time.

It rounds no more than cuDNN's, and returns the statistics that cuDNN's backward pass needs. Written in Gluon, which
Triton calls experimental and changes between versions, so `can_run` tries the kernel before it is used.
Knows nothing of choices (ops/attention_choice.py). Given up: head sizes other than 64 and 128, a backward pass.
"""

from __future__ import annotations

import functools
import logging
import math

import torch
from torch import Tensor

from .attention_sizes import SHORTEST

WIDTHS = (64, 128)
"""Head sizes that the kernel supports."""

_ALIGNMENT = 16  # bytes: where the copy engine can start to read
_LARGEST_ERROR = {torch.bfloat16: 0.01, torch.float16: 0.01, torch.int8: 0.1}
_log = logging.getLogger(__name__)


def may_run(device: torch.device, width: int) -> bool:
    """Whether `can_run` is worth calling. Takes no time itself."""
    return device.type == "cuda" and width in WIDTHS and torch.cuda.get_device_capability(device)[0] == 9


def is_worth_more(k_BLHD: Tensor, v_BLHD: Tensor) -> bool:
    """Whether the kernel supports such keys and values, and has enough of them: for the 512 of a text it takes 1.4
    times as long as cuDNN's (benchmarks/optimisations.md)."""
    return v_BLHD.shape == k_BLHD.shape and k_BLHD.shape[1] >= SHORTEST


@functools.cache
def can_run(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether the kernel compiles for this device and gives right results. Takes seconds the first time.

    `dtype`: bfloat16, float16, or int8 for that of ops/eight_bit_attention.py.
    """
    if dtype not in _LARGEST_ERROR or not may_run(device, width):
        return False
    try:
        error = _try_out(device, dtype, width)
    except Exception as failure:  # from Triton, its compilers, or a version of it without Gluon
        _log.debug("the attention kernel for Hopper fails here: %s", failure)
        return False
    if not error < _LARGEST_ERROR[dtype]:
        _log.debug("the attention kernel for Hopper is wrong here, by %s in %s, heads of %d", error, dtype, width)
        return False
    return True


@torch.no_grad()
def _try_out(device: torch.device, dtype: torch.dtype, width: int) -> float:
    """The relative error against float32 on the CPU, for two samples whose lengths are not whole blocks."""
    own = torch.Generator("cpu").manual_seed(0)  # leaves the job's random numbers alone
    half = torch.bfloat16 if dtype == torch.int8 else dtype
    parts = [torch.randn(2, length, 2, width, generator=own, device="cpu").to(half) for length in (200, 1000, 1000)]
    q_BLHD, k_BLHD, v_BLHD = (part.to(device) for part in parts)
    with torch.autocast("cpu", enabled=False):
        q, k, v = (part.float() for part in parts)
        score_BHMN = torch.einsum("bmhd,bnhd->bhmn", q, k) / math.sqrt(width)
        wanted_BLHD = torch.einsum("bhmn,bnhd->bmhd", score_BHMN.softmax(-1), v)
    if dtype == torch.int8:
        from .eight_bit_attention_triton import attend

        return _distance(attend(q_BLHD, k_BLHD, v_BLHD, hopper=True), wanted_BLHD)
    found_BLHD, found_BHL = hopper_attention(q_BLHD, k_BLHD, v_BLHD)
    return max(_distance(found_BLHD, wanted_BLHD), _distance(found_BHL, score_BHMN.logsumexp(-1)))


def _distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.cpu().float() - wanted).norm() / wanted.norm())


def hopper_attention(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> tuple[Tensor, Tensor]:
    """(softmax(q k^T / sqrt(D)) v [B, L of q, H, D], logsumexp of the scores [B, H, L of q] float32), contiguous.

    To be called only if it `can_run`. q, k and v have the same type, number of heads and head size. No gradient.
    A NaN in a sample's first values also reaches the sample before it, whose last block of keys extends over them with
    weight 0.
    """
    from .hopper_attention_gluon import attend

    samples, length, heads, _ = q_BLHD.shape
    out_BLHD = q_BLHD.new_empty(q_BLHD.shape)
    logsumexp_BHL = q_BLHD.new_empty((samples, heads, length), dtype=torch.float32)
    attend(*map(token_rows, (q_BLHD, k_BLHD, v_BLHD)), out_BLHD, logsumexp_BHL, k_BLHD.shape[1])
    return out_BLHD, logsumexp_BHL


def token_rows(part_BLHD: Tensor) -> Tensor:
    """[B·L, H·D]: a view if the copy engine can read the tensor as it is, else a copy."""
    samples, length, heads, width = part_BLHD.shape
    of_sample, of_token, of_head, of_channel = part_BLHD.stride()
    if not (
        of_channel == 1
        and (of_head == width or heads == 1)
        and of_token >= heads * width
        and of_token * part_BLHD.element_size() % _ALIGNMENT == 0
        and part_BLHD.data_ptr() % _ALIGNMENT == 0
        and (of_sample == length * of_token or samples == 1)
    ):
        part_BLHD = part_BLHD.clone(memory_format=torch.contiguous_format)
        of_token = heads * width
    return part_BLHD.as_strided((samples * length, heads * width), (of_token, 1))
