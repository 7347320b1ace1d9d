"""The product that a block's result needs and its gradients do not.

If a block ends in `tokens + gate · layer(hidden)`, only the gate's gradient depends on the layer's output; all others
need just its input. A block that is recomputed for its gradients alone (memory/recomputing.py) runs `without_result`,
and there a compiler leaves the layer's product out. Without a compiler nothing is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_unwanted = False  # a plain value, which torch.compile can guard on


@contextmanager
def without_result() -> Iterator[None]:
    """Inside, the results of blocks are not used, only their gradients."""
    global _unwanted
    before, _unwanted = _unwanted, True
    try:
        yield
    finally:
        _unwanted = before


def last_product(layer: Callable[[Tensor], Tensor], x: Tensor, gate: Tensor) -> Tensor:
    """layer(x), to be multiplied by the gate and added to the block's result: for parts/embeddings.py, `gated_result`.

    Inside `without_result` only its shape and gradients are right, unless the gate learns, whose gradient needs it.
    """
    return _Unseen.apply(layer(x), x) if _unwanted and not gate.requires_grad else layer(x)


class _Unseen(torch.autograd.Function):
    """Stands in for `result`, with other values and the gradients of `result`. It is made of `x`, so that a compiler
    still computes what leads to x and drops the product alone."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, x: Tensor) -> Tensor:
        return x[..., :1].to(result.dtype).expand(result.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
