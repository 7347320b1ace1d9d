"""Gradient checkpointing of blocks: keep a block's inputs, compute the rest again in the backward pass.

With offload the inputs that carry gradients (the tokens) wait in main memory: copied there by a stream of their own
while later blocks compute, and fetched one block ahead in the backward pass.
Given up: choosing what inside a block is kept.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .host import host_bytes
from .streaming import CHECKPOINTED

FLAG = "--gradient_checkpointing_cpu_offload"
SMALLEST_OFFLOAD = 1 << 20
"""Bytes: smaller inputs are not worth a copy."""


def checkpoint_blocks(
    blocks: nn.ModuleList, *, offload: bool = False, smallest_offload: int = SMALLEST_OFFLOAD
) -> Offload | None:
    """Wrap each block's forward in a checkpoint; without gradients (sampling) nothing changes.

    Call it last, after `stream_blocks`. Random numbers (dropout) are the same in the recomputation.
    Returns the offload when there is one.
    """
    store = Offload(smallest_bytes=smallest_offload) if offload else None
    for block in blocks:
        if hasattr(block, CHECKPOINTED):
            raise ValueError("these blocks are checkpointed already")
        block.forward = _checkpointed(block.forward, store)  # type: ignore[method-assign]
        setattr(block, CHECKPOINTED, True)
    return store


def _checkpointed(inner: Callable[..., Any], store: Offload | None) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return inner(*args, **kwargs)
        if store is None:
            return checkpoint(inner, *args, use_reentrant=False, **kwargs)
        # the checkpoint saves its inputs under these hooks; what the block saves is under the checkpoint's own
        with store.hooks([value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]):
            return checkpoint(inner, *args, use_reentrant=False, **kwargs)

    return forward


class Offload:
    """Tensors that autograd saves, in main memory. Host buffers are used again from step to step.

    Device memory that a copy reads or writes is held until the computing stream has been told to wait for that copy.
    (Tensor.record_stream would leave it to events that lie behind while Python runs ahead, and memory would pile up.)
    """

    def __init__(self, *, smallest_bytes: int = SMALLEST_OFFLOAD) -> None:
        self.smallest_bytes = smallest_bytes
        self.moved = 0
        """Tensors sent to main memory so far."""
        self._free: dict[tuple[torch.device, int], list[Tensor]] = {}
        self._parked: list[weakref.ref[_Parked]] = []
        self._lanes: dict[torch.device, _Lane] = {}

    def hooks(self, inputs: list[Tensor]) -> torch.autograd.graph.saved_tensors_hooks:
        """Hooks that move those of `inputs` which carry gradients; shared inputs (text, time) stay."""
        moving = {_identity(value) for value in inputs if value.requires_grad and value.nbytes >= self.smallest_bytes}

        def pack(tensor: Tensor) -> Tensor | _Parked:
            return self._park(tensor) if _identity(tensor) in moving else tensor

        return torch.autograd.graph.saved_tensors_hooks(pack, self._fetch)

    def _park(self, tensor: Tensor) -> _Parked:
        lane = self._lane(tensor.device)
        lane.settle()
        free = self._free.setdefault((tensor.device, tensor.nbytes), [])
        host = free.pop() if free else host_bytes(tensor.nbytes, pinned=tensor.is_cuda, flag=FLAG)
        parked = _Parked(host, tensor)
        lane.copy(parked.on_host, tensor.detach())
        weakref.finalize(parked, free.append, host).atexit = False
        self._parked.append(weakref.ref(parked))
        self.moved += 1
        return parked

    def _fetch(self, saved: Tensor | _Parked) -> Tensor:
        if not isinstance(saved, _Parked):
            return saved
        lane = self._lane(saved.device)
        self._start(saved)
        tensor, saved.arriving = saved.arriving, None
        assert tensor is not None
        lane.settle()
        if before := self._before(saved):
            self._start(before)
        return tensor

    def _start(self, saved: _Parked) -> None:
        if saved.arriving is None:
            saved.arriving = torch.empty(saved.shape, dtype=saved.dtype, device=saved.device)
            self._lane(saved.device).copy(saved.arriving, saved.on_host)

    def _before(self, saved: _Parked) -> _Parked | None:
        """What was parked just before: backward asks for it next."""
        alive = [(reference, parked) for reference in self._parked if (parked := reference()) is not None]
        self._parked = [reference for reference, _ in alive]
        order = [parked for _, parked in alive]
        place = order.index(saved)
        return order[place - 1] if place > 0 else None

    def _lane(self, device: torch.device) -> _Lane:
        if device not in self._lanes:
            self._lanes[device] = _Lane(device)
        return self._lanes[device]


class _Lane:
    """Copies beside the computation of one device; on a CPU they are made at once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.under_way: list[tuple[Tensor, Tensor]] = []

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Queue a copy behind everything that is queued now. Both ends are held until `settle`."""
        if self.side is None:
            target.copy_(source)
            return
        self.side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.side):
            target.copy_(source, non_blocking=True)
        self.under_way.append((target, source))

    def settle(self) -> None:
        """Let the computing stream wait for the copies so far, after which their memory may go where it will."""
        if self.under_way:
            torch.cuda.current_stream(self.device).wait_stream(self.side)
            self.under_way.clear()


class _Parked:
    """One tensor in main memory, and on its way back the copy on the device."""

    def __init__(self, host: Tensor, tensor: Tensor) -> None:
        self.shape, self.dtype, self.device = tensor.shape, tensor.dtype, tensor.device
        self.on_host = host[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        self.arriving: Tensor | None = None


def _identity(tensor: Tensor) -> tuple[int, torch.Size, torch.dtype]:
    return tensor.data_ptr(), tensor.shape, tensor.dtype
