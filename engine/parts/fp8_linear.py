"""A frozen linear layer whose weight is stored as float8 (e4m3) and computed in its input's dtype.

For models that run once and are thrown away (text encoders): half the memory of bf16, no special hardware, and it
works on a CPU. Not for models that train or sample: there real fp8 matrix products pay off.
Given up: fp8 compute, bias in fp8.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..ops.fp8 import CODES, dequantize, quantize


class StoredFp8Linear(nn.Module):
    """y = x (codes * scale)^T + bias. `codes` [out, in] float8; `scale` of any shape that `dequantize` takes.

    There is no `weight`: model code that looks at its dtype to cast activations would cast them to float8.
    """

    weight = None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        shape, device = linear.weight.shape, linear.weight.device
        self.codes = nn.Parameter(torch.empty(shape, dtype=CODES, device=device), requires_grad=False)
        self.bias = linear.bias
        self.register_buffer("scale", torch.ones((), device=device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, dequantize(self.codes, self.scale).to(x.dtype), self.bias)


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(codes, scale) of a weight [out, in]: each row scaled so that its largest entry is e4m3's largest number.

    A plain cast would lose small weights: e4m3's smallest number is 2^-9.
    """
    return quantize(weight.float(), "channel")


def store_linears_in_fp8(module: nn.Module) -> None:
    """Replace every nn.Linear inside `module` (usually on "meta", before loading) by a StoredFp8Linear."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, StoredFp8Linear(child))
