"""Attention in 8 bits: GPUs from Ada and Hopper on multiply twice as fast in 8 bits as in bf16.

The scheme is one that SageAttention 2 (Zhang et al., arXiv 2411.10958) found accurate enough. Scores come from int8
codes of queries and of keys minus their mean, with a scale per block (the mean shifts all scores of a query equally,
which softmax ignores). Weights are float8; values are float8 with a scale per channel, minus their mean, which is added
back. Softmax and sums are float32. The ideas are theirs, the kernels ours.

On CUDA it runs in Triton kernels, on Hopper in that of ops/hopper_attention_gluon.py; on a CPU as a formula, as
accurate and no faster than ordinary attention. Gradients: ops/eight_bit_gradients.py.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..contract.packages import how_to_install
from .attention_sizes import SHORTEST
from .fp8 import CODES

BLOCK = 128
"""Tokens that share a scale."""
LARGEST_CODE = 127
SMALLEST_SCALE = 1e-12
WEIGHT_BITS = 8
"""Weights are 2^8 times too large until the end, so that small ones keep digits in float8."""
WIDTHS = (64, 128)
"""Head sizes that the kernels support."""
FIRST_CAPABILITY = (8, 9)

LARGEST_VALUE = torch.finfo(CODES).max
QUERIES_AT_A_TIME = 1024  # of the formula


class Statistics(NamedTuple):
    """Of keys and values, [B, H, D] float32."""

    key_mean: Tensor
    value_mean: Tensor
    key_scale: Tensor
    value_scale: Tensor


def score_factor(width: int) -> float:
    """The factor f with which 2^(f q·k) = e^(q·k / sqrt(D)), D being `width`."""
    return math.log2(math.e) / math.sqrt(width)


def key_at(place: int) -> int:
    """The key whose values are at this place of a row for Hopper's kernel (ops/hopper_attention_gluon.py); also
    compiled into the kernel that writes them there. Of 16 keys: 0 1 8 9 2 3 10 11 4 5 12 13 6 7 14 15."""
    return place - place % 16 + place % 4 // 2 * 8 + place % 16 // 4 * 2 + place % 2


def statistics(k_BLHD: Tensor, v_BLHD: Tensor) -> Statistics:
    """Those of all tokens."""
    means = [part.mean(dim=1, dtype=torch.float32) for part in (k_BLHD, v_BLHD)]
    ranges = [torch.aminmax(part.float(), dim=1) for part in (k_BLHD, v_BLHD)]
    return Statistics(*means, *(channel_scale(*two, mean) for two, mean in zip(ranges, means, strict=True)))


def channel_scale(lowest: Tensor, highest: Tensor, mean: Tensor) -> Tensor:
    """The scale with which the number furthest from the mean becomes the largest float8 code."""
    return (torch.maximum(highest - mean, mean - lowest) / LARGEST_VALUE).clamp(min=SMALLEST_SCALE)


def is_worth_it(q_BLHD: Tensor, k_BLHD: Tensor) -> bool:
    """Whether the kernels support this head size, and there are enough keys."""
    return q_BLHD.shape[-1] in WIDTHS and k_BLHD.shape[1] >= SHORTEST


@functools.cache
def missing(device: torch.device) -> str | None:
    """Why the kernels cannot run on this device, in a few words; None if they can, or need not (on a CPU)."""
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        return f"it has kernels for NVIDIA GPUs only, not for {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability < FIRST_CAPABILITY:
        found, first = (".".join(map(str, one)) for one in (capability, FIRST_CAPABILITY))
        return f"it needs a GPU of compute capability {first} or higher (RTX 40, H100), and this one has {found}"
    if importlib.util.find_spec("triton") is None:
        return f"it needs the package triton. {how_to_install('triton')}"
    try:
        _try_out(device)
    except Exception as error:  # Triton's own errors have no common kind, nor have those of its compilers
        return f"Triton cannot compile its kernels for this GPU: {error}"
    return None


def _try_out(device: torch.device) -> None:
    from .eight_bit_attention_triton import attend

    for width in WIDTHS:
        attend(*(torch.ones(1, 16, 1, width, device=device, dtype=torch.bfloat16) for _ in range(3)))


@torch.library.custom_op("musubi::eight_bit_attention", mutates_args=())
def eight_bit_attention(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v: [B, L of q, H, D] in v's dtype. No gradient. To be called only if nothing is
    `missing`."""
    if q_BLHD.is_cuda:
        from .eight_bit_attention_triton import attend

        return attend(q_BLHD, k_BLHD, v_BLHD)
    return formula(q_BLHD, k_BLHD, v_BLHD)


@eight_bit_attention.register_fake
def _(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
    return v_BLHD.new_empty(q_BLHD.shape)


# ---------------------------------------------------------------------------------------------------- the formula


def formula(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
    """What the kernels compute, in PyTorch's own operations."""
    return with_statistics(q_BLHD, k_BLHD, v_BLHD)[0]


def with_statistics(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> tuple[Tensor, Tensor]:
    """`formula`, and each query's largest score (in powers of two) and sum of weights, [2·B, H, L] float32."""
    measured = statistics(k_BLHD, v_BLHD)
    q_codes, q_scale, k_codes, k_scale = score_codes(q_BLHD, k_BLHD, measured.key_mean)
    v_codes = (v_BLHD.float() - measured.value_mean[:, None]) / measured.value_scale[:, None]
    v_codes = in_float8(v_codes).transpose(1, 2)
    found, largest, total = [], [], []
    for codes, scale in zip(q_codes.split(QUERIES_AT_A_TIME, 2), q_scale.split(QUERIES_AT_A_TIME, 2), strict=True):
        score_BHMN = codes @ k_codes.mT * scale * k_scale.mT
        largest.append(score_BHMN.amax(-1))
        weight_BHMN = torch.exp2(score_BHMN - largest[-1][..., None] + WEIGHT_BITS)
        total.append(weight_BHMN.sum(-1) / 2**WEIGHT_BITS)
        found.append(in_float8(weight_BHMN) @ v_codes / 2**WEIGHT_BITS / total[-1][..., None])
    found_BHLD = torch.cat(found, dim=2) * measured.value_scale[:, :, None] + measured.value_mean[:, :, None]
    return found_BHLD.transpose(1, 2).to(v_BLHD.dtype), torch.cat([torch.cat(largest, 2), torch.cat(total, 2)])


def score_codes(q_BLHD: Tensor, k_BLHD: Tensor, key_mean: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes of queries and keys [B, H, L, D] and scales [B, H, L, 1] with which their products are scores."""
    q_codes, q_scale = block_codes(q_BLHD.float().transpose(1, 2))
    k_codes, k_scale = block_codes((k_BLHD.float() - key_mean[:, None]).transpose(1, 2))
    return q_codes, q_scale * score_factor(q_BLHD.shape[-1]), k_codes, k_scale


def in_float8(values: Tensor) -> Tensor:
    """Rounded to float8; in float32 again, for sums."""
    return values.clamp(-LARGEST_VALUE, LARGEST_VALUE).to(CODES).float()


def row_codes(rows_BHLD: Tensor, smallest: float = SMALLEST_SCALE) -> tuple[Tensor, Tensor]:
    """int8 codes (as floats) and the scale of each row, `smallest` or more."""
    scale = (rows_BHLD.abs().amax(-1, keepdim=True) / LARGEST_CODE).clamp(min=smallest)
    return torch.floor(rows_BHLD / scale + 0.5), scale


def block_codes(rows_BHLD: Tensor) -> tuple[Tensor, Tensor]:
    """The codes, and for each row the scale of its block [B, H, L, 1]."""
    blocks = rows_BHLD.split(BLOCK, dim=2)
    largest = torch.cat(
        [block.abs().amax((2, 3), keepdim=True).expand(-1, -1, block.shape[2], -1) for block in blocks], 2
    )
    scale = (largest / LARGEST_CODE).clamp(min=SMALLEST_SCALE)
    return torch.floor(rows_BHLD / scale + 0.5), scale
