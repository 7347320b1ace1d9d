"""CAME: Adafactor's factored second moments, with steps that shrink where they disagree (arXiv 2307.02047).

A matrix keeps one full moment (the average step) and four vectors. Steps are clipped by their root mean square, so the
learning rate is AdamW's or somewhat lower.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class CAME(torch.optim.Optimizer):
    """The arguments and numbers of came-pytorch 0.1.3.

    `eps`: added to squared gradients, and to squared disagreements. `betas`: of the step, of the squared gradients, of
    the squared disagreements. Weight decay is decoupled.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        eps: tuple[float, float] = (1e-30, 1e-16),
        clip_threshold: float = 1.0,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        weight_decay: float = 0.0,
    ) -> None:
        """ValueError for values outside their limits."""
        if not lr >= 0 or not weight_decay >= 0 or not clip_threshold > 0:
            raise ValueError(f"lr {lr}, weight_decay {weight_decay} or clip_threshold {clip_threshold} is too small")
        if len(betas) != 3 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas {betas} must be three numbers from 0 to below 1")
        if len(eps) != 2 or not all(value >= 0 for value in eps):
            raise ValueError(f"eps {eps} must be two numbers that are not below 0")
        values = {"lr": lr, "eps": eps, "clip_threshold": clip_threshold, "betas": betas, "weight_decay": weight_decay}
        super().__init__(params, values)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step; `closure` is not called."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._update(parameter, group)
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        factored = parameter.ndim >= 2
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
            for name in ("sq", "res") if factored else ("sq",):
                _begin(state, name, parameter, factored=factored)
        (tiny, small), (beta1, beta2, beta3) = group["eps"], group["betas"]
        update = gradient * _inverse_root(state, "sq", gradient.square() + tiny, beta2, factored=factored)
        update /= (_root_mean_square(update) / group["clip_threshold"]).clamp(min=1.0)
        average: Tensor = state["exp_avg"].lerp_(update, 1 - beta1)
        if not factored:
            return average
        disagreement = (update - average).square() + small
        return average * _inverse_root(state, "res", disagreement, beta3, factored=True)


def _begin(state: dict[str, Any], name: str, parameter: Tensor, *, factored: bool) -> None:
    if factored:
        state[f"exp_avg_{name}_row"] = torch.zeros_like(parameter[..., 0])
        state[f"exp_avg_{name}_col"] = torch.zeros_like(parameter[..., 0, :])
    else:
        state[f"exp_avg_{name}"] = torch.zeros_like(parameter)


def _inverse_root(state: dict[str, Any], name: str, squares: Tensor, beta: float, *, factored: bool) -> Tensor:
    """1 / √ of the moving average of `squares`, for matrices rebuilt from the averages of its rows and columns."""
    if not factored:
        whole: Tensor = state[f"exp_avg_{name}"].lerp_(squares, 1 - beta)
        return whole.rsqrt()
    row: Tensor = state[f"exp_avg_{name}_row"].lerp_(squares.mean(dim=-1), 1 - beta)
    column: Tensor = state[f"exp_avg_{name}_col"].lerp_(squares.mean(dim=-2), 1 - beta)
    shares = row / row.mean(dim=-1, keepdim=True)
    return shares.rsqrt().unsqueeze(-1) * column.rsqrt().unsqueeze(-2)


def _root_mean_square(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()
