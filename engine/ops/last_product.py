"""The product that a block's result needs and its gradients do not.

Where a block ends in `tokens + gate · layer(hidden)`, no gradient but the gate's depends on what the layer gives, only
on what goes into it. A block that is computed again for its gradients alone (memory/recomputing.py) is run
`without_result`, and there a compiler leaves the layer's products out. Without a compiler nothing is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_unwanted = False  # a plain value, which torch.compile can watch


@contextmanager
def without_result() -> Iterator[None]:
    """Inside, nobody looks at the results of blocks."""
    global _unwanted
    before, _unwanted = _unwanted, True
    try:
        yield
    finally:
        _unwanted = before


def last_product(layer: Callable[[Tensor], Tensor], x: Tensor, gate: Tensor) -> Tensor:
    """layer(x), to be multiplied by the gate and added to the block's result: for parts/embeddings.py, `gated_result`.

    `without_result` only its shape and its gradients, unless the gate learns: its gradient asks for the product.
    """
    return _Unseen.apply(layer(x), x) if _unwanted and not gate.requires_grad else layer(x)


class _Unseen(torch.autograd.Function):
    """Gives something else than `result`, with the gradients of `result`. It is made of `x`, so that a compiler makes
    what leads to x where it makes the rest, and only the product elsewhere: nowhere."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, x: Tensor) -> Tensor:
        return x[..., :1].to(result.dtype).expand(result.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
