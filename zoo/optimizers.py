"""The steps of both trainings: Muon for matrices, AdamW for all else, one learning rate for both.

Muon replaces the momentum of a weight, taken as a matrix, by the nearest matrix whose singular values are about 1, by
five rounds of a polynomial (K. Jordan, 2024), so that it goes equally far in all directions. Its steps are as long as
Adam's are on average (0.2 of the rate an element, J. Liu et al. 2025). Matrices of one shape go through the rounds
together, which is what makes it fast for many small ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_ROUNDS, _POLYNOMIAL = 5, (3.4445, -4.7750, 2.0315)
_LENGTH = 0.2
_SMALLEST = 1e-7
_LONGEST_GRADIENT = 1.0


class Optimizers:
    """AdamW, and Muon for the weights whose names and values `by_muon` picks. Frozen weights are left alone."""

    def __init__(self, network: nn.Module, *, by_muon: Callable[[str, Tensor], bool], weight_decay: float) -> None:
        learning = [(name, weight) for name, weight in network.named_parameters() if weight.requires_grad]
        self.weights = [weight for _, weight in learning]
        matrices = [weight for name, weight in learning if by_muon(name, weight)]
        others = [weight for name, weight in learning if not by_muon(name, weight)]
        fused = self.weights[0].is_cuda
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.99), weight_decay=0.0, fused=fused)
        ]
        if matrices:
            self._optimizers.append(Muon(matrices, lr=0.0, weight_decay=weight_decay))

    def step(self, rate: float) -> None:
        """One step along the gradients that are there, which are shortened where they are long."""
        nn.utils.clip_grad_norm_(self.weights, _LONGEST_GRADIENT)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self._optimizers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for optimizer, state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict(state)


class Muon(torch.optim.Optimizer):
    """For weights of two dimensions or more; those behind the first are taken as one."""

    def __init__(self, weights: Iterable[Tensor], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(weights, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                alike[len(weight), weight[0].numel()].append(weight)
            for shape, weights in alike.items():
                self._step(weights, group, length=_LENGTH * max(shape) ** 0.5)

    def _step(self, weights: list[Tensor], group: dict[str, Any], *, length: float) -> None:
        for weight in weights:
            if "momentum" not in self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        momenta, gradients = [self.state[weight]["momentum"] for weight in weights], [weight.grad for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1.0 - group["momentum"])
        directions = torch._foreach_lerp(gradients, momenta, group["momentum"])
        steps_NRC = orthogonal(torch.stack([direction.flatten(1) for direction in directions]))
        steps = [step_RC.view(weight.shape) for step_RC, weight in zip(steps_NRC.float(), weights, strict=True)]
        torch._foreach_mul_(weights, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, steps, alpha=-group["lr"] * length)


def orthogonal(matrices_NRC: Tensor) -> Tensor:
    """The orthogonal part of each matrix, roughly: singular values between about 0.7 and 1.2. bf16 on a GPU."""
    tall = matrices_NRC.shape[1] > matrices_NRC.shape[2]
    x_NRC = (matrices_NRC.mT if tall else matrices_NRC).to(torch.bfloat16 if matrices_NRC.is_cuda else torch.float32)
    x_NRC = x_NRC / (x_NRC.norm(dim=(1, 2), keepdim=True) + _SMALLEST)
    first, third, fifth = _POLYNOMIAL
    for _ in range(_ROUNDS):
        square_NRR = x_NRC @ x_NRC.mT
        x_NRC = first * x_NRC + (third * square_NRR + fifth * square_NRR @ square_NRR) @ x_NRC
    return x_NRC.mT if tall else x_NRC
