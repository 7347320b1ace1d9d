"""Gradient checkpointing of blocks: keep a block's inputs, recompute the rest in the backward pass.

The result of attention to many tokens (ops/kept_attention.py), which is the most expensive to recompute, is kept as
well: always if it waits in main memory, else if the device has room for it.
The last few blocks can be left out: they keep everything they compute, which is freed before the others are
differentiated, and they are not run twice.
With offload, the inputs that carry gradients (the tokens) and the results of attention wait in main memory. They are
copied there on a stream of their own while later blocks compute, and fetched one block ahead in the backward pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

from ..contract.errors import OptionError
from ..ops.device import free_bytes
from ..ops.host import host_bytes
from ..ops.kept_attention import KEEP_FROM, Shelf
from .recomputing import ROOT, Call, Root, for_each, gradients, learning_now, recomputed, taken_apart, wanting
from .rules import keeps_attention
from .slots import CHECKPOINTED

FLAG, COUNT_FLAG = "--gradient_checkpointing_cpu_offload", "--gradient_checkpointing_blocks"
SMALLEST_OFFLOAD = 1 << 20
"""Bytes: smaller inputs are not worth a copy."""

Attention = Literal["auto", "keep", "recompute"]


def checkpoint_blocks(
    blocks: nn.ModuleList,
    *,
    count: int | None = None,
    offload: bool = False,
    attention: Attention = "auto",
    smallest_offload: int = SMALLEST_OFFLOAD,
    keep_from: int = KEEP_FROM,
) -> Offload | None:
    """Wrap the forward of the first `count` blocks (None: all) in a checkpoint.

    Without gradients (sampling) nothing changes. Call it last, after `stream_blocks`. Recomputation draws the same
    random numbers (dropout). `attention`: what to do with results of attention to at least `keep_from` keys; "auto"
    keeps them if there is room. Returns the offload, if there is one. OptionError: there are fewer blocks.
    """
    count = len(blocks) if count is None else count
    if not 1 <= count <= len(blocks):
        raise OptionError(
            f"{count} blocks cannot be checkpointed: this model has {len(blocks)}.",
            hint=f"Give {COUNT_FLAG} a number from 1 to {len(blocks)}, or leave it out to checkpoint all.",
        )
    store = Offload(smallest_bytes=smallest_offload) if offload else None
    keeps = Keeping(attention, blocks=count, others=len(blocks) - count, offloaded=offload)
    for block in blocks[:count]:
        if hasattr(block, CHECKPOINTED):
            raise ValueError("these blocks are checkpointed already")
        block.forward = _checkpointed(block, store, keeps, keep_from)  # type: ignore[method-assign]
        setattr(block, CHECKPOINTED, True)
    return store


class Keeping:
    """Decides whether results of attention are kept: called for each block, decided once per size of its input."""

    def __init__(self, attention: Attention, *, blocks: int, offloaded: bool, others: int = 0) -> None:
        """`blocks`: how many are checkpointed; `others`: how many are not."""
        self._attention, self._blocks, self._others, self._offloaded = attention, blocks, others, offloaded
        self._decided: dict[torch.Size, bool] = {}

    def __call__(self, inputs: Sequence[Tensor]) -> bool:
        if self._attention != "auto" or self._offloaded:
            return self._attention != "recompute"
        largest = max(inputs, key=lambda value: value.nbytes)
        if largest.shape not in self._decided:
            self._decided[largest.shape] = self._fits(largest)
        return self._decided[largest.shape]

    def _fits(self, tokens: Tensor) -> bool:
        free = free_bytes(tokens.device)
        return free is None or keeps_attention(tokens.nbytes, blocks=self._blocks, free=free, others=self._others)


def _checkpointed(block: nn.Module, store: Offload | None, keeps: Keeping, keep_from: int) -> Callable[..., Any]:
    inner: Callable[..., Any] = block.forward
    make_root: Root | None = getattr(block, ROOT, None)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return inner(*args, **kwargs)
        tensors, call = taken_apart(args, kwargs)
        learning = learning_now(block) if make_root else None
        shelf = Shelf(store, keep_from=keep_from, once=learning is not None)
        contexts = shelf.contexts if keeps(tensors) else noop_context_fn
        # the inputs are saved under these hooks; PyTorch's checkpoint computes under hooks of its own
        with nullcontext() if store is None else store.hooks(tensors):
            if make_root is None or learning is None:
                return checkpoint(inner, *args, use_reentrant=False, context_fn=contexts, **kwargs)
            writing, reading = contexts()
            again = partial(_gradients, partial(_within, reading, make_root), call, learning)
            return recomputed(call, partial(_within, writing, inner), again, tensors, learning)

    return forward


def _gradients(
    make_root: Root, call: Call, learning: Sequence[Tensor], leaves: Sequence[Tensor], grads: Sequence[Tensor]
) -> list[Tensor | None]:
    everything = (*leaves, *learning)
    args, kwargs = call.arguments(leaves)
    return for_each(everything, gradients(partial(make_root, args, kwargs, grads), wanting(everything)))


def _within(context: AbstractContextManager[Any], run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with context:
        return run(*args, **kwargs)


class Offload:
    """Keeps tensors that autograd saves in main memory. Host buffers are reused from step to step.

    Device memory that a copy reads or writes is held until the compute stream has been made to wait for that copy.
    (Tensor.record_stream relies on events that lag behind while Python runs ahead, so memory would pile up.)
    """

    def __init__(self, *, smallest_bytes: int = SMALLEST_OFFLOAD) -> None:
        self.smallest_bytes = smallest_bytes
        self.moved = 0
        """Tensors sent to main memory so far."""
        self._free: dict[tuple[torch.device, int], list[Tensor]] = {}
        self._runs: list[list[weakref.ref[_Parked]]] = []  # what each run of a block parked, oldest run first
        self._count = 0  # runs so far
        self._places: dict[tuple[torch.device, int], list[Tensor]] = {}  # free device buffers, by size
        self._lent: dict[int, list[Tensor]] = {}  # by run: the device buffers its fetched tensors use
        self._lanes: dict[torch.device, _Lane] = {}

    def hooks(self, inputs: list[Tensor]) -> torch.autograd.graph.saved_tensors_hooks:
        """Hooks that move those `inputs` that carry gradients; shared inputs (text, time) stay."""
        moving = {_identity(value) for value in inputs if value.requires_grad and value.nbytes >= self.smallest_bytes}
        self._runs.append([])
        self._count += 1
        settled = False

        def pack(tensor: Tensor) -> Tensor | _Parked:
            nonlocal settled
            if _identity(tensor) not in moving:
                return tensor
            if not settled:
                self._lane(tensor.device).settle()
                settled = True
            return self._park(tensor)

        return torch.autograd.graph.saved_tensors_hooks(pack, self.take)

    def put(self, *tensors: Tensor) -> tuple[Tensor | _Parked, ...]:
        """Send results of the running block to main memory; small ones stay."""
        self._lane(tensors[0].device).settle()  # once: copying one must not delay what follows the other
        return tuple(self._park(tensor) if tensor.nbytes >= self.smallest_bytes else tensor for tensor in tensors)

    def _park(self, tensor: Tensor) -> _Parked:
        lane = self._lane(tensor.device)
        free = self._free.setdefault((tensor.device, tensor.nbytes), [])
        host = free.pop() if free else host_bytes(tensor.nbytes, pinned=tensor.is_cuda, advice=f"Leave out {FLAG}")
        parked = _Parked(host, tensor, run=self._count)
        lane.copy(parked.as_its_tensor(parked.on_host), tensor.detach())
        weakref.finalize(parked, free.append, host).atexit = False
        self._runs[-1].append(weakref.ref(parked))
        self.moved += 1
        return parked

    def take(self, kept: Tensor | _Parked) -> Tensor:
        """The tensor, back on the device. Starts to fetch what the block before parked, which backward needs next."""
        if not isinstance(kept, _Parked):
            return kept
        lane = self._lane(kept.device)
        self._take_back(kept.run)
        self._start(kept)
        place, kept.arriving, kept.taken = kept.arriving, None, True
        assert place is not None
        self._lent.setdefault(kept.run, []).append(place)
        tensor = kept.as_its_tensor(place)
        lane.settle()
        due = self._due_after(kept)
        for parked in due:
            self._start(parked)
        if all(parked.run != kept.run for parked in due):  # nobody will ask for the free buffers any more
            self._places.clear()
        if not due:
            self._lent.clear()
        return tensor

    def _start(self, parked: _Parked) -> None:
        if parked.arriving is None:
            free = self._places.get((parked.device, parked.on_host.nbytes))
            parked.arriving = free.pop() if free else torch.empty_like(parked.on_host, device=parked.device)
            self._lane(parked.device).copy(parked.arriving, parked.on_host)

    def _take_back(self, run: int) -> None:
        """Reclaim the device buffers lent to other runs. Blocks are differentiated one after the other, so as one
        begins, the buffers of the others are free, unless another tensor now uses them. Reusing the same buffers leaves
        the rest of the device's memory unfragmented: each block's results fit where those of the one before were, even
        if there is hardly any memory left."""
        for number in [number for number in self._lent if number != run]:
            for place in self._lent.pop(number):
                if _is_alone(place):
                    self._places.setdefault((place.device, place.nbytes), []).append(place)

    def _due_after(self, kept: _Parked) -> list[_Parked]:
        """What the same run has not taken yet, else what the run before has not. Forgets finished runs."""
        alive = [[parked for reference in run if (parked := reference()) is not None] for run in self._runs]
        self._runs = [run for run, left in zip(self._runs, alive, strict=True) if left]
        alive = [run for run in alive if run]
        place = next(index for index, run in enumerate(alive) if kept in run)
        rest = [parked for parked in alive[place] if not parked.taken]
        return rest or [parked for parked in alive[place - 1] if place > 0 and not parked.taken]

    def _lane(self, device: torch.device) -> _Lane:
        if device not in self._lanes:
            self._lanes[device] = _Lane(device)
        return self._lanes[device]


class _Lane:
    """Copies alongside the computation of one device; on a CPU they happen at once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.under_way: list[tuple[Tensor, Tensor]] = []

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Queue a copy behind everything queued so far. Both ends are held until `settle`."""
        if self.side is None:
            target.copy_(source)
            return
        self.side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.side):
            target.copy_(source, non_blocking=True)
        self.under_way.append((target, source))

    def settle(self) -> None:
        """Make the compute stream wait for the copies so far, after which their memory may be reused."""
        if self.under_way:
            torch.cuda.current_stream(self.device).wait_stream(self.side)
            self.under_way.clear()


class _Parked:
    """One tensor in main memory and, on its way back, its copy on the device, both as bytes. `run`: of the block."""

    def __init__(self, host: Tensor, tensor: Tensor, *, run: int) -> None:
        self.shape, self.dtype, self.device, self.run = tensor.shape, tensor.dtype, tensor.device, run
        self.on_host = host[: tensor.nbytes]
        self.arriving: Tensor | None = None
        self.taken = False

    def as_its_tensor(self, place: Tensor) -> Tensor:
        return place.view(self.dtype).view(self.shape)


def _is_alone(place: Tensor) -> bool:
    """Whether no other tensor uses its memory: a compiler may have put a result there."""
    return _holders(place) == _holders(torch.empty(0))


def _holders(tensor: Tensor) -> int:
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)


def _identity(tensor: Tensor) -> tuple[int, torch.Size, torch.dtype]:
    return tensor.data_ptr(), tensor.shape, tensor.dtype
