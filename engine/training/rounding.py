"""Weights kept in bf16 and trained all the same: an optimizer computes in float32 and rounds stochastically.

Rounding to the nearest loses a step that is smaller than half the distance of two bf16 numbers, and a LoRA's steps
are: such weights stand still. Rounded up or down by chance, in proportion, they move on average as they should. Works
around any optimizer of torch.optim's kind; its moments are float32 also when a state is loaded. Given up: Kahan
summation, which needs as much memory as float32 weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .parameters import parameters_of

_COUNTS = "rounded"  # in an optimizer's groups, which its state keeps: place of a parameter -> how often it was rounded


def round_stochastically(x: Tensor, generator: torch.Generator) -> Tensor:
    """float32 -> bf16: one of the two nearest numbers, each as likely as the other is far, so the mean is right.

    bf16 are the upper 16 of a float32's 32 bits: a random number is added to the lower ones, which are then cut off.
    What is not finite, or would not be any more, is converted as always.
    """
    noise = torch.randint(0, 1 << 16, x.shape, generator=generator, device=x.device, dtype=torch.int32)
    raised = ((x.contiguous().view(torch.int32) + noise) & -(1 << 16)).view(torch.float32)
    return torch.where(raised.isfinite() & x.isfinite(), raised, x).to(torch.bfloat16)


class Bf16Weights:
    """Makes the parameters of an optimizer bf16, in which their gradients come too, and its steps as described above.

    What chance does depends on nothing but the parameter's place and its number of steps: a resumed training goes on
    bit for bit, and several processes stay alike.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._places: dict[Tensor, int] = {}
        self._narrow: dict[Tensor, Tensor] = {}  # the bf16 storage of each parameter that is float32 just now
        for parameter in parameters_of(self._optimizer):
            parameter.data = parameter.data.to(torch.bfloat16)
            self._places[parameter] = len(self._places)
        optimizer.register_step_pre_hook(lambda *_: self._widen(with_gradient=True))
        optimizer.register_step_post_hook(lambda *_: self._take_back(self._rounded))
        # Loaded moments take the dtype of their parameter. Not by hooks, which bitsandbytes' loading does not call.
        optimizer.load_state_dict = self.in_float32(optimizer.load_state_dict)  # type: ignore[method-assign]

    def in_float32(self, change: Callable[..., None]) -> Callable[..., None]:
        """What does `change` while the parameters are float32, and rounds them to the nearest afterwards."""

        def changed(*arguments: Any) -> None:
            self._widen()
            change(*arguments)
            self._take_back(torch.clone)

        return changed

    def _widen(self, *, with_gradient: bool = False) -> None:
        for parameter in parameters_of(self._optimizer):
            gradient = parameter.grad
            if with_gradient and gradient is None:
                continue
            self._narrow[parameter] = parameter.data
            parameter.grad = None  # it must have the dtype of its parameter
            parameter.data = parameter.data.float()
            parameter.grad = None if gradient is None else gradient.float()

    @torch.no_grad()
    def _take_back(self, convert: Callable[[Tensor], Tensor]) -> None:
        for parameter, narrow in self._narrow.items():
            narrow.copy_(convert(parameter))
            parameter.grad, parameter.data = None, narrow
        self._narrow.clear()

    def _rounded(self, parameter: Tensor) -> Tensor:
        place, counts = self._places[parameter], self._optimizer.param_groups[0].setdefault(_COUNTS, {})
        counts[place] = counts.get(place, 0) + 1
        digest = hashlib.sha256(f"{place}/{counts[place]}".encode()).digest()
        generator = torch.Generator(parameter.device).manual_seed(int.from_bytes(digest[:4], "little"))
        return round_stochastically(parameter.detach(), generator)
