"""What an optimizer moves, and being told when a gradient is ready."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor


def parameters_of(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """What it moves now, in the order of its groups."""
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def call_with_gradients(parameters: Iterable[Tensor], act: Callable[[Tensor], None]) -> None:
    """Have the method `act(parameter)` called whenever the gradient of one of these is ready, within `backward()`,
    as long as its object lives: a hook is never collected with its parameter, so it must not hold that."""
    method = weakref.WeakMethod(act)

    def hook(parameter: Tensor) -> None:
        if (alive := method()) is not None:
            alive(parameter)

    for parameter in parameters:
        learns = parameter.requires_grad  # an expert's that waits does not, yet
        parameter.requires_grad_(True).register_post_accumulate_grad_hook(hook)
        parameter.requires_grad_(learns)
