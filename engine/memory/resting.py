"""Weights that rest in main memory while their model is not used, so that the GPU is free for others.

A resting model is still a model, only on the wrong device; `wake` moves every tensor back to where it was, bit for bit.
Nothing moves on a CPU. Given up: page-locked memory, which would make waking faster but take memory from all programs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..contract.events import Meter, Say
from .streaming import BlockStream


def weights_in(thing: Any) -> Iterator[Tensor]:
    """Parameters and buffers of a module, or of the modules in a dataclass, which families return for encoders."""
    if isinstance(thing, nn.Module):
        yield from thing.parameters()
        yield from thing.buffers()
    elif dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        for field in dataclasses.fields(thing):
            yield from weights_in(getattr(thing, field.name))


class Resting:
    """Weights at rest. `stream`: what streams some of them, if any; its buffers on the device are freed too."""

    def __init__(self, weights: Iterable[Tensor], stream: BlockStream | None = None) -> None:
        self._stream = stream
        if stream is not None:
            stream.rest()
        self._away: list[tuple[Tensor, torch.device]] = []
        self.host_bytes = 0 if stream is None else stream.host_bytes
        for tensor in {id(tensor): tensor for tensor in weights}.values():
            if tensor.device.type != "cpu":
                self._away.append((tensor, tensor.device))
                tensor.data = tensor.data.cpu()
            self.host_bytes += tensor.nbytes

    def wake(self, say: Say, label: str) -> None:
        """Put everything back. Called once; `label` names the model in the progress."""
        meter = Meter(say, total=len(self._away), unit="tensors", label=label)
        for tensor, device in self._away:
            tensor.data = tensor.data.to(device)
            meter.advance()
        meter.close()
        if self._stream is not None:
            self._stream.wake()
