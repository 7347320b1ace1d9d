"""`--fused_backward_pass`: each parameter takes its step as soon as its gradient is ready, which is then freed.

So there are never more gradients than those of one block, where else there is one for each parameter. It works with
optimizers that look at one parameter at a time, and where nobody else has to see all gradients together: no clipping,
no accumulation, one process, no loss scaler. Whether all that is so is for the caller to check (contract/rules.py,
optimizers.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .parameters import call_with_gradients


class FusedBackward:
    """Steps an optimizer within `backward()`, one parameter at a time, as long as somebody holds this."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        groups = [list(group["params"]) for group in optimizer.param_groups]
        self._group_of = {parameter: number for number, group in enumerate(groups) for parameter in group}
        self._squares = torch.zeros((), device=groups[0][0].device)
        call_with_gradients(self._group_of, self._step)

    def take_norm(self) -> Tensor:
        """The norm of all gradients since it was asked for last: not finite when one of them was not."""
        norm = self._squares.sqrt()
        self._squares = torch.zeros_like(norm)
        return norm

    def _step(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        self._squares += gradient.float().square().sum()
        gradient.nan_to_num_(0.0, 0.0, 0.0)  # to ask whether it is needed would make the CPU wait for the device
        with self._alone(parameter):
            self._optimizer.step()
        parameter.grad = None

    @contextmanager
    def _alone(self, parameter: Tensor) -> Iterator[None]:
        """Inside this block the optimizer has this parameter alone, in its own group."""
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
