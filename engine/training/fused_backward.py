"""`--fused_backward_pass`: each parameter takes its step as soon as its gradient is ready, which is then freed.

So at most one block's gradients exist at a time, instead of one for each parameter. It works with optimizers that treat
each parameter by itself, and only where nothing needs all gradients together: no clipping, no accumulation, one
process, no loss scaler. The caller checks all that (contract/rules.py, optimizers.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .parameters import call_with_gradients


class FusedBackward:
    """Steps an optimizer within `backward()`, one parameter at a time, for as long as this object lives."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        groups = [list(group["params"]) for group in optimizer.param_groups]
        self._group_of = {parameter: number for number, group in enumerate(groups) for parameter in group}
        self._squares = torch.zeros((), device=groups[0][0].device)
        call_with_gradients(self._group_of, self._step)

    def take_norm(self) -> Tensor:
        """The norm of all gradients since the last call; not finite if any of them was not."""
        norm = self._squares.sqrt()
        self._squares = torch.zeros_like(norm)
        return norm

    def _step(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        self._squares += gradient.float().square().sum()
        gradient.nan_to_num_(0.0, 0.0, 0.0)  # unconditionally: asking first would make the CPU wait for the device
        with self._alone(parameter):
            self._optimizer.step()
        parameter.grad = None

    @contextmanager
    def _alone(self, parameter: Tensor) -> Iterator[None]:
        """Inside this block the optimizer sees this parameter alone, in its own group."""
        groups = self._optimizer.param_groups
        every = [group["params"] for group in groups]
        for group in groups:
            group["params"] = []
        groups[self._group_of[parameter]]["params"] = [parameter]
        try:
            yield
        finally:
            for group, members in zip(groups, every, strict=True):
                group["params"] = members
