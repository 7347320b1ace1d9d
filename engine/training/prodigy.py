"""Prodigy: AdamW that finds its learning rate by itself (arXiv 2306.06101, algorithm 4).

It estimates how far the solution lies (`d`) and multiplies the learning rate with that, so that rate is 1 and a
schedule still shapes it. Differs from prodigyopt 1.1.2 on purpose: the estimate waits for the device once a step
instead of twice for each weight, and groups with different rates are refused when it is made, not at the first step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


class Prodigy(torch.optim.Optimizer):
    """The arguments and numbers of prodigyopt 1.1.2.

    `d0` is the first estimate, `d_coef` multiplies each, `growth_rate` limits how fast it grows in a step. `beta3` of
    the estimate is √beta2 unless given. `safeguard_warmup`: a warm-up does not count in the estimate. `slice_p`: look
    at every so-manieth number only. The estimate stands in each group, as `d`.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decouple: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = math.inf,
        slice_p: int = 1,
    ) -> None:
        """ValueError for values outside their limits, and for groups whose rates differ."""
        if not lr >= 0 or not weight_decay >= 0 or not d0 > 0 or not eps > 0 or not slice_p >= 1:
            raise ValueError(f"one of lr {lr}, weight_decay {weight_decay}, d0 {d0}, eps {eps}, slice_p {slice_p}")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas {betas} must be two numbers from 0 to below 1")
        options = {
            "lr": lr, "betas": betas, "beta3": beta3, "eps": eps, "weight_decay": weight_decay, "decouple": decouple,
            "use_bias_correction": use_bias_correction, "safeguard_warmup": safeguard_warmup, "d_coef": d_coef,
            "growth_rate": growth_rate, "slice_p": slice_p,
        }  # fmt: skip
        estimate = {"d": d0, "d0": d0, "d_max": d0, "d_numerator": 0.0, "k": 0}
        super().__init__(params, options | estimate)
        if len({group["lr"] for group in self.param_groups} - {0.0}) > 1:
            raise ValueError("it finds one learning rate for all, so LoRA+ and rates of single modules cannot be had")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step; `closure` is not called. Without a rate (the start of a warm-up) nothing happens."""
        first = self.param_groups[0]
        rate = max(group["lr"] for group in self.param_groups)
        step_size = first["d"] * rate * self._correction()
        if not step_size or not any(True for _ in self._learning()):
            return
        distances, lengths = [], []
        for group, parameter in self._learning():
            distance, own_length = self._observe(group, parameter, step_size)
            distances.append(distance)
            lengths.append(own_length)
        numbers = torch.stack(distances + lengths).tolist()
        length = math.fsum(numbers[len(distances) :])
        if length == 0:
            return  # no gradient at all
        self._estimate(step_size * math.fsum(numbers[: len(distances)]), length)
        for group, parameter in self._learning():
            self._move(group, parameter, step_size)
        for group in self.param_groups:
            group["k"] += 1

    def _learning(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        for group in self.param_groups:
            if group["lr"]:
                yield from ((group, parameter) for parameter in group["params"] if parameter.grad is not None)

    def _correction(self) -> float:
        """Adam's, of both averages."""
        first = self.param_groups[0]
        (beta1, beta2), count = first["betas"], first["k"] + 1
        return math.sqrt(1 - beta2**count) / (1 - beta1**count) if first["use_bias_correction"] else 1.0

    def _observe(self, group: dict[str, Any], parameter: Tensor, step_size: float) -> tuple[Tensor, Tensor]:
        """Take a gradient into the averages: (way from the start along the gradient, absolute sum of the averaged
        gradients), both in d0."""
        state, gradient, every = self.state[parameter], _gradient(group, parameter), group["slice_p"]
        seen, here = gradient.flatten()[::every], parameter.flatten()[::every]
        if not state:
            state["s"] = torch.zeros_like(seen)
            state["p0"] = here.clone() if parameter.any() else here.new_zeros(())  # an up matrix begins with nothing
            if group["betas"][0]:
                state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        (beta1, beta2), d, beta3 = group["betas"], group["d"], group["beta3"]
        beta3 = math.sqrt(beta2) if beta3 is None else beta3
        distance = torch.dot(seen, state["p0"] - here) * (d / group["d0"])
        if beta1:
            state["exp_avg"].mul_(beta1).add_(gradient, alpha=d * (1 - beta1))
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=d * d * (1 - beta2))
        weight = d if group["safeguard_warmup"] else step_size
        state["s"].mul_(beta3).add_(seen, alpha=d / group["d0"] * weight)
        return distance, state["s"].abs().sum()

    def _estimate(self, progress: float, length: float) -> None:
        """The new `d`, the same in all groups; it never falls."""
        first = self.param_groups[0]
        beta3 = math.sqrt(first["betas"][1]) if first["beta3"] is None else first["beta3"]
        numerator = beta3 * first["d_numerator"] + progress
        found = first["d_coef"] * numerator / length
        d, largest = first["d"], max(first["d_max"], found)
        if d == first["d0"]:
            d = max(d, found)
        d = min(largest, d * first["growth_rate"])
        for group in self.param_groups:
            group.update(d=d, d_max=largest, d_numerator=numerator)

    def _move(self, group: dict[str, Any], parameter: Tensor, step_size: float) -> None:
        state = self.state[parameter]
        if group["decouple"]:
            parameter.mul_(1 - group["weight_decay"] * step_size)
        root = state["exp_avg_sq"].sqrt().add_(group["d"] * group["eps"])
        direction = state["exp_avg"] if group["betas"][0] else _gradient(group, parameter) * group["d"]
        parameter.addcdiv_(direction, root, value=-step_size)


def _gradient(group: dict[str, Any], parameter: Tensor) -> Tensor:
    """With the weight decay where that is coupled."""
    assert parameter.grad is not None
    if group["weight_decay"] and not group["decouple"]:
        return parameter.grad.add(parameter, alpha=group["weight_decay"])
    return parameter.grad
