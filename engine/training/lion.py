"""Lion: steps of one size in the direction of a moving average's sign (arXiv 2302.06675, algorithm 2).

One number of state for each weight, half of AdamW's. Its steps are larger than AdamW's at the same rate: the paper
advises a learning rate 3 to 10 times smaller and a weight decay as much larger.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Lion(torch.optim.Optimizer):
    """The arguments and numbers of lion-pytorch 0.2.5."""

    def __init__(
        self, params: Any, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        """ValueError for rates below 0 and betas outside 0..1."""
        if not lr >= 0 or not weight_decay >= 0:
            raise ValueError(f"lr {lr} and weight_decay {weight_decay} must not be below 0")
        if len(betas) != 2 or not all(0 <= beta <= 1 for beta in betas):
            raise ValueError(f"betas {betas} must be two numbers from 0 to 1")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step; `closure` is not called."""
        for group in self.param_groups:
            rate, (beta1, beta2) = group["lr"], group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                average = state["exp_avg"]
                direction = average.lerp(parameter.grad, 1 - beta1).sign_()
                parameter.mul_(1 - rate * group["weight_decay"]).add_(direction, alpha=-rate)
                average.lerp_(parameter.grad, 1 - beta2)
