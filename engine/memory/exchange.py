"""Several sets of frozen weights that take turns in one model.

The model is built, adapted, compiled and streamed once; a turn only changes which numbers its parameters hold. Sets
that are not in use wait beside it on the device (a turn costs nothing), in main memory (a turn is a copy each way, and
the device holds one set and one tensor more), or in their files (a turn loads one after the other was freed).
Streamed blocks wait where streaming keeps them, in main memory or on disk: a turn swaps pointers. Knows no family and
no noise level. Given up: copying both ways at once, sets of different shapes or number formats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..contract.errors import OptionError, WeightsError
from ..ops.host import host_bytes
from .slots import COMPILED_WITH_GRAPHS
from .streaming import BlockStream
from .waiting import Kept

FLAG = "--offload_inactive_dit"


@dataclass
class _Waiting:
    """A set that is not in use: tensors by name, and the streamed blocks."""

    tensors: dict[str, Tensor]
    blocks: list[Kept]


class WeightSets:
    """The sets of one model, by number. `current` is in use; the others are loaded when their turn first comes."""

    def __init__(
        self,
        model: nn.Module,
        blocks: nn.ModuleList,
        current: int,
        load: Callable[[int], tuple[nn.Module, nn.ModuleList]],
        *,
        stream: BlockStream | None = None,
        keep: bool = True,
        pinned: bool = False,
    ) -> None:
        """`load(number)` returns a model like this one, and its blocks, with the weights where they are to wait.

        `stream`: what streams the blocks. `keep` False: a set that leaves is freed, and loaded again for its next turn.
        `pinned`: page-lock what waits in main memory (CUDA only).
        """
        if any(hasattr(block, COMPILED_WITH_GRAPHS) for block in blocks):
            raise OptionError(
                "This compile mode records CUDA graphs, which need weights to stay in place, but experts take turns.",
                "Use --compile_mode default or max-autotune-no-cudagraphs, or use a single expert.",
            )
        self.model, self.current, self.keep = model, current, keep
        self._blocks, self._load, self._stream, self._pinned = blocks, load, stream, pinned and keep
        self._waiting: dict[int, _Waiting] = {}

    def use(self, number: int) -> None:
        """Put this set into the model. Never between a forward pass and its backward pass."""
        if number == self.current:
            return
        if not self.keep:
            self._forget_current()
        if number not in self._waiting:
            self._waiting[number] = self._loaded(number)
        coming = self._waiting.pop(number)
        for name, tensor in self._resident(self.model, self._blocks).items():
            coming.tensors[name] = trade(tensor, coming.tensors[name])
        if self._stream is not None:
            coming.blocks = self._stream.trade(coming.blocks)
        if self.keep:
            self._waiting[self.current] = coming
        self.current = number

    def waiting(self) -> Iterator[Tensor]:
        """The tensors of the sets that are not in use, without streamed ones."""
        for waiting in self._waiting.values():
            yield from waiting.tensors.values()

    def _loaded(self, number: int) -> _Waiting:
        model, blocks = self._load(number)
        theirs, ours = self._resident(model, blocks), self._resident(self.model, self._blocks)
        if [(name, t.dtype) for name, t in theirs.items()] != [(name, t.dtype) for name, t in ours.items()]:
            raise WeightsError(
                "The weights of the experts have different names or number formats.", "Convert one of them."
            )
        packed = self._stream.pack_blocks(blocks) if self._stream is not None else []
        return _Waiting({name: self._put(tensor) for name, tensor in theirs.items()}, packed)

    def _put(self, tensor: Tensor) -> Tensor:
        if not self._pinned or tensor.device.type != "cpu":
            return tensor.data
        place = host_bytes(tensor.nbytes, pinned=True, advice=f"Leave out {FLAG}")[: tensor.nbytes]
        return place.view(tensor.dtype).view(tensor.shape).copy_(tensor.data)

    def _resident(self, model: nn.Module, blocks: nn.ModuleList) -> dict[str, Tensor]:
        """The weights that are not streamed, by their names."""
        streamed: set[int] = set()
        if self._stream is not None:
            for index in self._stream.indices:
                streamed |= {id(parameter) for parameter in blocks[index].parameters()}
        tensors = model.state_dict(keep_vars=True)
        return {name: tensor for name, tensor in tensors.items() if id(tensor) not in streamed}

    def _forget_current(self) -> None:
        for tensor in self._resident(self.model, self._blocks).values():
            tensor.data = tensor.data.new_empty(0)
        if self._stream is not None:
            self._stream.trade([])


def trade(parameter: Tensor, waiting: Tensor) -> Tensor:
    """Give a parameter the waiting numbers; returns the tensor that now holds its former ones.

    On one device pointers are swapped; across devices numbers are, so that neither side needs memory for both. For a
    parameter that has been emptied the numbers are copied to its device.
    """
    if waiting.device == parameter.device or not parameter.numel():
        leaving, parameter.data = parameter.data, waiting.to(parameter.device)
        return leaving
    leaving = parameter.data.clone()
    parameter.data.copy_(waiting, non_blocking=True)
    waiting.copy_(leaving)
    if parameter.is_cuda:
        torch.cuda.synchronize(parameter.device)
    return waiting
