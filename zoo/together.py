"""Several processes that train one network, a GPU each: as `torchrun --nproc_per_node 4 -m zoo …` starts them.

Each draws examples of its own. They begin with equal weights, and their gradients are averaged, so these stay equal.
Number 0 has the clock, and alone it speaks and writes. One process alone needs none of this, and it costs it nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, distributed


class Together:
    """The processes that torchrun's variables name: this one is `number` of `count`."""

    def __init__(self) -> None:
        self.number, self.count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def leads(self) -> bool:
        return self.number == 0

    @cached_property
    def _met(self) -> bool:
        """All are there. For tensors of the GPU and of the CPU; the machine needs no network."""
        if self.count == 1:
            return False
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        return True

    def device(self, name: str) -> torch.device:
        """The GPU of this process, or what `name` says."""
        if name != "cuda" or self.count == 1:
            return torch.device(name)
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        return device

    def agree(self, value: float) -> float:
        """The value of number 0, in all of them."""
        if not self._met:
            return value
        said = torch.tensor([value], dtype=torch.float64)
        distributed.broadcast(said, src=0)
        return float(said)

    def average_gradients(self, weights: Sequence[Tensor]) -> None:
        """In place of each gradient, its mean over the processes."""
        if not self._met:
            return
        gradients = [weight.grad for weight in weights]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        means = (flat / self.count).split([gradient.numel() for gradient in gradients])
        shaped = [mean.view(gradient.shape) for mean, gradient in zip(means, gradients, strict=True)]
        torch._foreach_copy_(gradients, shaped)

    def part(self) -> None:
        """Wait for the others, and go."""
        if self._met:
            distributed.all_reduce(torch.zeros(1))
            distributed.destroy_process_group()
