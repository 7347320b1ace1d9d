"""Schedule-free AdamW: averaging instead of a falling learning rate (arXiv 2405.15682, algorithm 1).

Weights are trained at one point (`y`) and are good at another, the average (`x`). `eval()` shows x, `train()` y: a
training is in eval mode while it saves, samples and validates. Differs from schedulefree 1.4.1 on purpose: that
computes y back from x and is off by a rounding error each time, so what was saved more often ends elsewhere. Here y is
kept while x is shown, also in a state that is saved then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class AdamWScheduleFree(torch.optim.Optimizer):
    """The arguments and numbers of schedulefree 1.4.1.

    `warmup_steps` is the one schedule there is. A step counts in the average as its number to the power of `r`, times
    the learning rate to the power of `weight_lr_power`.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
    ) -> None:
        """ValueError for values outside their limits."""
        if not lr >= 0 or not weight_decay >= 0 or not eps > 0 or not warmup_steps >= 0:
            raise ValueError(f"one of lr {lr}, weight_decay {weight_decay}, eps {eps}, warmup_steps {warmup_steps}")
        if len(betas) != 2 or not 0 < betas[0] <= 1 or not 0 <= betas[1] < 1:
            raise ValueError(f"betas {betas} must be two numbers, the first above 0 to 1, the other 0 to below 1")
        options = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "warmup_steps": warmup_steps, "r": r,
            "weight_lr_power": weight_lr_power,
        }  # fmt: skip
        place = {"k": 0, "weight_sum": 0.0, "lr_max": -1.0, "scheduled_lr": 0.0, "train_mode": False}
        super().__init__(params, options | place)

    @torch.no_grad()
    def eval(self) -> None:
        """Show the average."""
        for group in self.param_groups:
            if group["train_mode"]:
                for parameter in group["params"]:
                    state = self.state.get(parameter)
                    if state and "y" not in state:  # of an earlier call, that found no memory for the rest
                        state["y"] = parameter.clone()
                        parameter.lerp_(state["z"], 1 - 1 / group["betas"][0])
            group["train_mode"] = False

    @torch.no_grad()
    def train(self) -> None:
        """Show what is trained, as it was."""
        for group in self.param_groups:
            for parameter in group["params"]:
                kept = self.state[parameter].pop("y", None) if parameter in self.state else None
                if kept is not None:
                    parameter.copy_(kept)
            group["train_mode"] = True

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step; `closure` is not called. RuntimeError outside of train mode."""
        if not all(group["train_mode"] for group in self.param_groups):
            raise RuntimeError("a step of a schedule-free optimizer that shows its average: call train() first")
        for group in self.param_groups:
            share = _advance(group)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(group, parameter, share)
            group["k"] += 1

    def _move(self, group: dict[str, Any], y: Tensor, share: float) -> None:
        state, (beta1, beta2), rate = self.state[y], group["betas"], group["scheduled_lr"]
        if not state:
            state["z"] = y.clone()
            state["exp_avg_sq"] = torch.zeros_like(y)
        assert y.grad is not None
        squares = state["exp_avg_sq"].mul_(beta2).addcmul_(y.grad, y.grad, value=1 - beta2)
        root = squares.div(1 - beta2 ** (group["k"] + 1)).sqrt_().add_(group["eps"])
        update = (y.grad / root).add_(y, alpha=group["weight_decay"])
        y.lerp_(state["z"], share).add_(update, alpha=rate * (beta1 * (1 - share) - 1))
        state["z"].sub_(update, alpha=rate)


def _advance(group: dict[str, Any]) -> float:
    """Set the rate of this step; returns its share in the average, 0..1."""
    count, warmup = group["k"] + 1, group["warmup_steps"]
    group["scheduled_lr"] = group["lr"] * min(1.0, count / warmup if warmup else 1.0)
    group["lr_max"] = max(group["lr_max"], group["scheduled_lr"])
    weight = count ** group["r"] * group["lr_max"] ** group["weight_lr_power"]
    group["weight_sum"] += weight
    return weight / group["weight_sum"] if group["weight_sum"] else 0.0
