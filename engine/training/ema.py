"""An exponential moving average (EMA) of what is trained, taken while training: steadier than the last step.

It is float32, whatever the parameters are. The decay warms up, so that a short training is not dragged back to its
first weights: after n updates it is min(decay, (1 + n) / (10 + n)), as in diffusers' EMAModel and TensorFlow's
ExponentialMovingAverage, and nothing is left of the weights at the start. Of several experts only the one that learns
is averaged in a step, with a warm-up of its own, so each has the average of a training of itself alone.
Knows no file and no adapter: the factors of a LoRA are averaged one by one, as everybody does it, not their product.
Averages of checkpoints after the fact are lora/ema.py's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def decay_at(update: int, decay: float) -> float:
    """What stays of the average in this update, counted from 1: nothing in the first."""
    past = update - 1
    return min(decay, (1 + past) / (10 + past)) if past else 0.0


class Ema:
    """The average of some parameters; `device` is where it waits, by default where they are.

    All processes of a training have it, and it is the same in all.
    """

    def __init__(self, parameters: Sequence[Tensor], *, decay: float, device: torch.device | str | None = None) -> None:
        self.decay = decay
        self._parameters, self._device = parameters, device
        self._averages: list[Tensor] = []
        self._updates = [0] * len(parameters)

    def begin(self) -> bool:
        """Start with the parameters as they are; False when a state was loaded, which it goes on from."""
        if self._averages:
            return False
        self._averages = [self._kept(parameter.detach(), parameter) for parameter in self._parameters]
        return True

    @torch.no_grad()
    def update(self) -> None:
        """Take in a step of what learns, after it."""
        for index, (average, parameter) in enumerate(zip(self._averages, self._parameters, strict=True)):
            if parameter.requires_grad:
                self._updates[index] += 1
                share = 1 - decay_at(self._updates[index], self.decay)
                average.lerp_(parameter.to(average.device, torch.float32), share)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Inside this block the parameters are the average, in float32; afterwards they are what they were."""
        trained = [parameter.data for parameter in self._parameters]
        try:
            for parameter, average in zip(self._parameters, self._averages, strict=True):
                parameter.data = average.to(parameter.device)
            yield
        finally:
            for parameter, data in zip(self._parameters, trained, strict=True):
                parameter.data = data

    def state_dict(self) -> dict[str, Any]:
        return {"averages": self._averages, "updates": list(self._updates)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a stored average. ValueError when it is of other parameters."""
        averages: list[Tensor] = state["averages"]
        if [average.shape for average in averages] != [parameter.shape for parameter in self._parameters]:
            raise ValueError("it averages parameters of other shapes")
        self._updates = list(state["updates"])
        self._averages = [self._kept(*both) for both in zip(averages, self._parameters, strict=True)]

    def _kept(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        """A copy of it where the average of that parameter is kept."""
        return tensor.to(self._device or parameter.device, torch.float32, copy=True)
