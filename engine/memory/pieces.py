"""Parts of blocks in pieces of the tokens: feed-forward layers are wide, and need not be wide for all tokens at once.

A block says in `TOKENWISE` which of its modules and methods treat each token by itself: what comes before attention and
what comes after it. With gradients each piece is a checkpoint of its own, so the backward pass computes one piece
again, differentiates it and forgets it: what the layers keep is there for one piece at a time. Counted on Wan 14B, the
most that there is while a block is differentiated falls from 32 to 10 sizes of its input (test_counted.py).
Inside a checkpointed block that costs one more forward pass of these layers. Numbers differ by rounding, since products
of fewer rows may be summed in another order.
Given up: pieces of attention itself, which has no large intermediates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WHOLE_BELOW = 2048
"""Tokens: fewer (a text) take little memory anyway."""

TokenWise = Callable[..., Any]


def run_in_pieces(blocks: Iterable[nn.Module], count: int, *, whole_below: int = WHOLE_BELOW) -> int:
    """Have what these blocks name in `TOKENWISE` computed in `count` pieces. Returns how many parts there are.

    Call it after adapters are attached and before blocks are compiled, streamed and checkpointed. Without gradients
    nothing changes.
    """
    found = 0
    for block in blocks:
        for name in getattr(block, "TOKENWISE", ()):
            part = getattr(block, name)
            if isinstance(part, nn.Module):
                part.forward = in_pieces(part.forward, count, whole_below=whole_below)  # type: ignore[method-assign]
            else:
                setattr(block, name, in_pieces(part, count, whole_below=whole_below))
            found += 1
    return found


def in_pieces(compute: TokenWise, count: int, *, whole_below: int = WHOLE_BELOW) -> TokenWise:
    """`compute` in `count` pieces of its tokens. Positional arguments have tokens along the last axis but one, and are
    cut; keyword arguments go to every piece whole. What it gives, one tensor or several, has them along axis 1.
    """

    def forward(*tokens_LD: Tensor, **whole: Any) -> Any:
        if not torch.is_grad_enabled() or tokens_LD[0].shape[-2] < whole_below:
            return compute(*tokens_LD, **whole)
        pieces = zip(*(tensor.chunk(count, dim=-2) for tensor in tokens_LD), strict=True)
        found = [checkpoint(compute, *piece, use_reentrant=False, **whole) for piece in pieces]
        if isinstance(found[0], Tensor):
            return torch.cat(found, dim=1)
        return tuple(torch.cat(parts, dim=1) for parts in zip(*found, strict=True))

    return forward
