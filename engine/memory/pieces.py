"""Parts of blocks in pieces of the tokens: feed-forward layers are wide, and need not be wide for all tokens at once.

A block names in `TOKENWISE` those of its methods that treat each token separately: what comes before and after
attention. With gradients each piece is checkpointed separately (recomputing.py), so the backward pass recomputes one
piece, differentiates it and frees it: what the layers keep is there for one piece at a time. On Wan 14B the peak while
a block is differentiated falls from 32 to 10 sizes of its input (counted by test_counted.py).
Inside a checkpointed block this costs one more forward pass of what comes before attention. The methods in `LAST` make
the block's own result, which is not needed when the block is recomputed for its backward pass and is left out there.
Numbers differ by rounding, since products of fewer rows may be summed in another order.
Given up: pieces of attention itself, which has no large intermediates; compiling around the pieces, since a graph of
the whole block would contain each of them and take minutes to compile (`compile_blocks` compiles one piece, for all).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .recomputing import Call, for_each, gradients, learning_now, recomputed, root, root_named, taken_apart, wanting

WHOLE_BELOW = 2048
"""Tokens: fewer (a text) take little memory anyway."""
IN_PIECES = "_in_pieces"  # left on a block

TokenWise = Callable[..., Any]


def run_in_pieces(blocks: Iterable[nn.Module], count: int, *, whole_below: int = WHOLE_BELOW) -> int:
    """Run what these blocks name in `TOKENWISE` in `count` pieces. Returns how many such parts there are.

    Call it after adapters are attached and before blocks are compiled, streamed and checkpointed. Without gradients
    nothing changes.
    """
    found = 0
    for block in blocks:
        names = getattr(block, "TOKENWISE", ())
        parts = [_cut(block, name, count, whole_below) for name in names]
        setattr(block, IN_PIECES, parts)
        found += len(parts)
    return found


def _cut(block: nn.Module, name: str, count: int, whole_below: int) -> InPieces:
    last = name in getattr(block, "LAST", ())
    cut = InPieces(
        getattr(block, name), count, whole_below=whole_below, last=last,
        name=f"{type(block).__name__}_{name}", learning=partial(learning_now, block),
    )  # fmt: skip
    setattr(block, name, cut)
    return cut


class InPieces:
    """`compute` in `count` pieces of its tokens. Positional arguments have tokens along the last axis but one, and are
    cut; keyword arguments are passed whole to every piece. The result, one tensor or several, has tokens along axis 1.

    `last`: the result has the shape and type of the first argument, and is the block's. Pieces are equally long, so
    that one compiled graph serves them all; the few tokens left over go through `compute` uncompiled. `learning()`: the
    parameters that train inside; None if that is unknown (see recomputing.py).
    """

    def __init__(
        self,
        compute: TokenWise,
        count: int,
        *,
        whole_below: int = WHOLE_BELOW,
        last: bool = False,
        name: str = "piece",
        learning: Callable[[], Sequence[Tensor] | None] = lambda: None,
    ) -> None:
        self.compute = self._plain = compute
        self.root = root_named(name)
        self.fetch: Callable[[], object] = _nothing_to_fetch
        """Puts the block's weights in place for what is queued next: pieces also run in backward, without the block."""
        self._count, self._whole_below, self._last, self._learning = count, whole_below, last, learning

    def __call__(self, *tokens_LD: Tensor, **whole: Any) -> Any:
        length = tokens_LD[0].shape[-2]
        if not torch.is_grad_enabled() or length < self._whole_below:
            return self.compute(*tokens_LD, **whole)
        learning = self._learning()
        if learning is None:
            return self._run(self._checkpointed, *tokens_LD, **whole)
        tensors, call = taken_apart(tokens_LD, whole)
        again = partial(self._gradients, call, len(tokens_LD), learning)
        return recomputed(call, partial(self._run, self._computing), again, tensors, learning)

    def _run(self, computing: Callable[[int], TokenWise], *tokens_LD: Tensor, **whole: Any) -> Any:
        found = [computing(number)(*piece, **whole) for number, piece in enumerate(self._cut(tokens_LD, -2))]
        if isinstance(found[0], Tensor):
            return torch.cat(found, dim=1)
        return tuple(torch.cat(parts, dim=1) for parts in zip(*found, strict=True))

    def _cut(self, tensors: Sequence[Tensor], axis: int) -> Iterator[tuple[Tensor, ...]]:
        each, left = divmod(tensors[0].shape[axis], self._count)
        sizes = [each] * self._count + [left] * bool(left)
        return zip(*(tensor.split(sizes, dim=axis) for tensor in tensors), strict=True)

    def _computing(self, number: int) -> TokenWise:
        if self._last and _running_again():
            return _nothing
        return self.compute if number < self._count else self._plain

    def _checkpointed(self, number: int) -> TokenWise:
        compute = self._computing(number)

        def run(*piece_LD: Tensor, **whole: Any) -> Any:
            self.fetch()
            return compute(*piece_LD, **whole)

        return partial(checkpoint, run, use_reentrant=False)

    def _gradients(
        self, call: Call, count: int, learning: Sequence[Tensor], tensors: Sequence[Tensor], grads: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """Gradients of the first `count` tensors (tokens), piece by piece; of all others, summed over the pieces."""
        self.fetch()
        tokens, whole = tensors[:count], tensors[count:]
        shared = wanting((*whole, *learning))
        made: list[list[Tensor]] = [[] for _ in wanting(tokens)]
        sums: list[Tensor | None] = [None] * len(shared)
        pieces = zip(self._cut(tokens, -2), self._cut(grads, 1), strict=True)
        for number, (piece, piece_grads) in enumerate(pieces):
            own = [part.detach().requires_grad_(token.requires_grad) for part, token in zip(piece, tokens, strict=True)]
            args, kwargs = call.arguments([*own, *whole])
            make_root = self.root if number < self._count else root
            mine = wanting(own)
            found = gradients(partial(make_root, self._plain, args, kwargs, piece_grads), [*mine, *shared])
            for parts, part, grad in zip(made, mine, found, strict=False):
                parts.append(torch.zeros_like(part) if grad is None else grad)
            sums = _added(sums, found[len(mine) :])
            del own, mine, args, kwargs, found
        return for_each((*tensors, *learning), [*(torch.cat(made.pop(0), dim=-2) for _ in range(len(made))), *sums])


def _added(sums: Sequence[Tensor | None], more: Sequence[Tensor | None]) -> list[Tensor | None]:
    both = [(a, b) for a, b in zip(sums, more, strict=True) if a is not None and b is not None]
    added = iter(torch._foreach_add([a for a, _ in both], [b for _, b in both]) if both else ())
    return [b if a is None else a if b is None else next(added) for a, b in zip(sums, more, strict=True)]


def _nothing_to_fetch() -> None:
    """Weights that stay on the device are in place."""


def _running_again() -> bool:
    """Whether this is the backward pass, in which a block runs only to recompute what its backward pass needs."""
    return torch._C._current_graph_task_id() != -1


def _nothing(first_LD: Tensor, *others: Any, **whole: Any) -> Tensor:
    """In place of a part whose result is not used."""
    return first_LD.detach()
