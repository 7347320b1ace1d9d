"""Recompute a part of a model for its gradients alone.

An ordinary checkpoint runs the part forward twice, each time under autograd, as if its result were wanted both times.
Here the first run is without autograd and saves nothing, and the second computes no result, only a root of the graph
that yields the gradients. In a compiled part this saves the last product of the second run (in many blocks the widest)
and everything that the first run would write for a backward pass.

It must be known which parameters train inside, and that the part draws no random numbers, which separate graphs would
draw differently: `tell_what_learns` records that for a block. Blocks without that record are checkpointed in PyTorch's
way. Given up: gradients of gradients; a second backward pass; forward and backward in one graph, for which the compiler
holds a seventh more, since it decides what to recompute only where it cuts the two apart itself.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..ops.last_product import without_result

# left on a block
LEARNS = "_learns"
ROOT = "_root"
"""Set where the whole block is compiled: its `root`, also compiled."""

Root = Callable[..., Tensor]
Gradients = Callable[[Sequence[Tensor], Sequence[Tensor]], Iterable[Tensor | None]]
"""(tensors, gradients of the results) -> a gradient for each of the tensors and each parameter that trains. Those
tensors that need one are leaves of a graph."""


def tell_what_learns(
    blocks: Iterable[nn.Module], learning: Callable[[nn.Module], Sequence[nn.Parameter] | None]
) -> None:
    """Record `learning(block)`, the parameters that train in it, or None if it draws random numbers. Call it before the
    blocks run for the first time."""
    for block in blocks:
        setattr(block, LEARNS, learning(block))


def learning_now(block: nn.Module) -> list[nn.Parameter] | None:
    """The parameters that train in a block at the moment; None if unknown, or if it draws random numbers."""
    recorded = getattr(block, LEARNS, None)
    return None if recorded is None else [parameter for parameter in recorded if parameter.requires_grad]


def root(compute: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], grads: Sequence[Tensor]) -> Tensor:
    """A scalar whose gradients are those that follow from `grads`, the gradients of the results of `compute`."""
    made = compute(*args, **kwargs)
    results = [made] if isinstance(made, Tensor) else list(made)
    return sum(_Root.apply(result, grad) for result, grad in zip(results, grads, strict=True))


class _Root(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, result: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return result.flatten()[0].float()

    @staticmethod
    def backward(ctx: Any, one: Tensor) -> tuple[Tensor, None]:
        (grad,) = ctx.saved_tensors
        return grad * one, None  # times 1, so that the compiler takes it for a part of the backward pass


@functools.cache
def root_named(name: str) -> Root:
    """A copy of `root` with a code object of its own. torch.compile caches graphs by code object: parts that shared one
    would look like a single part whose shapes change."""
    return types.FunctionType(root.__code__.replace(co_name=name), root.__globals__, name)


def gradients(make_root: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Gradients of the leaves; None for those that the root does not depend on."""
    with torch.enable_grad(), without_result():
        found = make_root()
    if not found.requires_grad:
        return [None] * len(leaves)
    return torch.autograd.grad(found, leaves, allow_unused=True)


class Call:
    """The arguments of a call without the tensors among them, and how to put them back. Holds no tensor itself."""

    def __init__(self, leaves: Sequence[Any], spec: Any) -> None:
        self._others = [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._spec = spec

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """args and kwargs with these tensors in their places."""
        row = iter(tensors)
        return tree_unflatten([next(row) if other is _TENSOR else other for other in self._others], self._spec)


def taken_apart(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[list[Tensor], Call]:
    """The tensors among the arguments of a call, in order, and the call."""
    leaves, spec = tree_flatten((tuple(args), kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)], Call(leaves, spec)


_TENSOR = object()


def recomputed(call: Call, run: Callable[..., Any], again: Gradients, tensors: Sequence[Tensor],
               learning: Sequence[Tensor]) -> Any:  # fmt: skip
    """The result of `run` for this call, computed without gradients. `tensors`, those of the call, are kept; in the
    backward pass `again` gives their gradients and those of `learning`, the parameters that train inside."""
    return _Recomputed.apply(call, run, again, len(tensors), *tensors, *learning)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Call, run: Callable[..., Any], again: Gradients, count: int, *tensors: Tensor) -> Any:
        ctx.again, ctx.count = again, count
        ctx.save_for_backward(*tensors[:count])
        kind = tensors[0].device.type
        ctx.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        # detached, so that the compiler sees no difference between those that need a gradient and the others
        args, kwargs = call.arguments([tensor.detach() for tensor in tensors[:count]])
        made = run(*args, **kwargs)
        return made if isinstance(made, Tensor) else tuple(made)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kind, dtype, enabled = ctx.autocast
        needed = ctx.needs_input_grad[4 : 4 + ctx.count]
        leaves = [tensor.detach().requires_grad_(need) for tensor, need in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False):
            found = ctx.again(leaves, grads)
        return None, None, None, None, *found


def wanting(leaves: Iterable[Tensor]) -> list[Tensor]:
    """The leaves that need a gradient."""
    return [leaf for leaf in leaves if leaf.requires_grad]


def for_each(leaves: Iterable[Tensor], found: Iterable[Tensor | None]) -> list[Tensor | None]:
    """A gradient or None for each leaf, given those of the leaves that need one."""
    rest = iter(found)
    return [next(rest) if leaf.requires_grad else None for leaf in leaves]
