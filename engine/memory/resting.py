"""Weights that rest in main memory while their model is not used, so that the GPU is free for others.

A resting model is still a model, only on the wrong device; `wake` moves every tensor back to where it was, bit for bit.
Nothing moves on a CPU. Given up: page-locked memory, which would make waking faster but take memory from all programs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..contract.events import Meter, Say
from ..ops.staging import moved
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
    """Weights at rest. `stream`: what streams some of them, if any; its buffers on the device are freed too.

    `label` names the model in the progress of moving them.
    """

    def __init__(self, weights: Iterable[Tensor], stream: BlockStream | None, *, say: Say, label: str) -> None:
        self._stream = stream
        if stream is not None:
            stream.rest()
        own = {id(tensor): tensor for tensor in weights}.values()
        self.host_bytes = sum(tensor.nbytes for tensor in own) + (0 if stream is None else stream.host_bytes)
        self._away = [(tensor, tensor.device) for tensor in own if tensor.device.type != "cpu"]
        _move([(tensor, torch.device("cpu")) for tensor, _ in self._away], say, label)

    def wake(self, say: Say, label: str) -> None:
        """Put everything back. Called once."""
        _move(self._away, say, label)
        if self._stream is not None:
            self._stream.wake()


def _move(wanted: Sequence[tuple[Tensor, torch.device]], say: Say, label: str) -> None:
    meter = Meter(say, total=len(wanted), unit="tensors", label=label, quiet_s=1.0)
    for (tensor, _), there in zip(wanted, moved((tensor.data, device) for tensor, device in wanted), strict=True):
        tensor.data = there
        meter.advance()
    meter.close()
