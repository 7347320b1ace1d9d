"""Slots of device memory in which frozen blocks take turns: each is filled shortly before its block runs.

There are a few slots, each as large as the largest block, filled on a separate stream while earlier blocks compute.
Nothing is copied out of a slot, since frozen weights do not change. It works forward, backward, while a checkpoint
recomputes, and without checkpointing: a weight that autograd saves is remembered by its place and fetched again.
Parameters that train (adapters) are left alone.

Only the order is guessed (next block forward, previous one backward): a wrong guess costs time, never correctness.
On the CPU the same code runs without streams. Where the weights come from is up to streaming.py and sharing.py.
Given up: weights that train, several threads in one model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..contract.errors import OptionError
from .pieces import IN_PIECES
from .recomputing import ROOT

ALIGNMENT = 256  # bytes: GPU kernels expect tensors to start at multiples of it

# attributes set on a block, so that wrapping in the wrong order is noticed
STREAMED = "_streamed"
CHECKPOINTED = "_checkpointed"
COMPILED_WITH_GRAPHS = "_compiled_with_graphs"
LOOKED_AT = "modulated"  # what a block may compute beside its forward, for a step cache


@dataclass(frozen=True)
class Piece:
    """One frozen parameter, and its place among the bytes of its block."""

    parameter: nn.Parameter
    start: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def stop(self) -> int:
        return self.start + self.shape.numel() * self.dtype.itemsize

    def view(self, buffer: Tensor) -> Tensor:
        return buffer[self.start : self.stop].view(self.dtype).view(self.shape)

    def looks_like(self, other: Piece) -> bool:
        return (self.start, self.shape, self.dtype) == (other.start, other.shape, other.dtype)


def lay_out(block: nn.Module) -> tuple[list[Piece], int]:
    """The block's frozen parameters, one after another, and their size in bytes. ValueError if there are none."""
    pieces, end = [], 0
    for parameter in block.parameters():
        if parameter.requires_grad:
            continue
        pieces.append(Piece(parameter, end, parameter.shape, parameter.dtype))
        end += -(-parameter.nbytes // ALIGNMENT) * ALIGNMENT
    if not pieces:
        raise ValueError("only frozen blocks go through slots: call requires_grad_(False) first")
    return pieces, end


def check_block(block: nn.Module, flag: str) -> None:
    """Refuse blocks that were wrapped in the wrong order. `flag`: the option that asks for slots."""
    if hasattr(block, CHECKPOINTED):
        raise ValueError("slots come before checkpoint_blocks: a recomputation must fetch its weights")
    if hasattr(block, STREAMED):
        raise ValueError("these blocks go through slots already")
    if hasattr(block, COMPILED_WITH_GRAPHS):
        raise OptionError(
            f"This compile mode records CUDA graphs, which need weights to stay in place; with {flag} they do not.",
            hint=f"Use --compile_mode default or max-autotune-no-cudagraphs, or leave out {flag}.",
        )


@dataclass(frozen=True)
class _Place:
    """A tensor in a slot that autograd has saved: the position of its block, and where in the slot it is."""

    position: int
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class BlockSlots:
    """Blocks in their order ("positions"), and slots that hold a few of them at a time.

    A subclass knows where weights wait: it fills slots, and says what parameters hold while their block is in none.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], pieces: Sequence[list[Piece]], *, bytes_each: int, slots: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        """`pieces`: those of each block (`lay_out`). `bytes_each`: the size of a slot."""
        self.device = device
        self.copies = 0
        """Blocks fetched so far."""
        self.waits = 0
        """How often a block was not even on its way when it was due."""
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._pieces = pieces
        slots = min(slots, len(blocks))
        self._slots = [torch.empty(bytes_each, dtype=torch.uint8, device=device) for _ in range(slots)]
        # made once, here: a view made under inference_mode could never be used for training
        self._views = [[[piece.view(buffer) for piece in pieces] for pieces in self._pieces] for buffer in self._slots]
        self._slot_at = {slot.untyped_storage().data_ptr(): index for index, slot in enumerate(self._slots)}
        self._held: list[int | None] = [None] * slots
        self._copied = [self._event() for _ in range(slots)]
        self._used = [self._event() for _ in range(slots)]
        self._current: int | None = None
        for position, block in enumerate(blocks):
            _move_rest(block, self._pieces[position], device)
            _Guard(self, position).attach(block)
        for position in range(slots):
            self._fetch(position, set(range(slots)))

    def _fill(self, position: int, slot: int) -> None:
        """Queue the copy of the block's bytes into the slot."""
        raise NotImplementedError

    def _elsewhere(self, position: int) -> Sequence[Tensor]:
        """The tensors that parameters hold while their block is in no slot, one per piece."""
        raise NotImplementedError

    @property
    def device_bytes(self) -> int:
        """Size of all slots together."""
        return sum(slot.nbytes for slot in self._slots)

    def need(self, position: int) -> None:
        """Have the weights at `position` in place for whatever is queued next, and start fetching the following
        ones."""
        if self._current is not None and self._current != position and self._current in self._held:
            self._record(self._used[self._held.index(self._current)])
        self._current = position
        ahead = self._ahead(position)
        if position not in self._held:
            self.waits += 1
            self._fetch(position, {position})
        slot = self._held.index(position)
        self._arrive(slot)
        if self._side is not None:
            torch.cuda.current_stream(self.device).wait_event(self._copied[slot])
        for index, following in enumerate(ahead):
            if following not in self._held:
                self._fetch(following, {position, *ahead[: index + 1]})

    def _ahead(self, position: int) -> list[int]:
        """The positions expected next, as many as there are other slots."""
        backward = torch._C._current_graph_task_id() != -1
        step = -1 if backward else 1
        following = [position + step * distance for distance in range(1, len(self._slots))]
        if not backward and not torch.is_grad_enabled():  # sampling: after the last block comes the first
            following = [place % len(self._pieces) for place in following]
        return [place for place in following if 0 <= place < len(self._pieces)]

    def _fetch(self, position: int, wanted: set[int]) -> None:
        """Bring a block into a slot that holds none of `wanted`."""
        slot = next(index for index, held in enumerate(self._held) if held is None or held not in wanted)
        self._bring(position, slot)

    def _bring(self, position: int, slot: int) -> None:
        leaving = self._held[slot]
        if leaving is not None:
            for piece, tensor in zip(self._pieces[leaving], self._elsewhere(leaving), strict=True):
                piece.parameter.data = tensor
        self._send(position, slot)
        for piece, view in zip(self._pieces[position], self._views[slot][position], strict=True):
            piece.parameter.data = view
        self._held[slot] = position
        self.copies += 1

    def _send(self, position: int, slot: int) -> None:
        """Queue the copy of the block's bytes into the slot, behind everything that reads its former content."""
        with self._beside():
            if self._side is not None:
                self._side.wait_event(self._used[slot])
            self._fill(position, slot)
            self._record(self._copied[slot])

    def _arrive(self, slot: int) -> None:
        """Called before a slot is waited for. A subclass may queue here what it could not queue in `_send`."""

    def _beside(self) -> AbstractContextManager[Any]:
        """A context for work that neither waits for the computation nor delays it."""
        return torch.cuda.stream(self._side) if self._side is not None else nullcontext()

    def pack(self, tensor: Tensor) -> Tensor | _Place:
        """Autograd's hook for saving: a tensor in a slot is replaced by its place, others are kept as they are."""
        slot = None if tensor.device.type != self.device.type else self._slot_of(tensor)
        if slot is None:
            return tensor
        position = self._held[slot]
        assert position is not None
        return _Place(position, tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset())

    def unpack(self, saved: Tensor | _Place) -> Tensor:
        """Autograd's hook for loading: the saved tensor, after fetching its block again if it has left."""
        if not isinstance(saved, _Place):
            return saved
        self.need(saved.position)
        buffer = self._slots[self._held.index(saved.position)]
        return buffer.view(saved.dtype).as_strided(saved.size, saved.stride, saved.offset)

    def _slot_of(self, tensor: Tensor) -> int | None:
        return self._slot_at.get(tensor.untyped_storage().data_ptr())

    def _event(self) -> torch.cuda.Event | None:
        return torch.cuda.Event() if self._side is not None else None

    def _record(self, event: torch.cuda.Event | None) -> None:
        if event is not None:
            event.record(torch.cuda.current_stream(self.device))


class _Guard:
    """Wraps a block so that its weights are fetched whenever it runs, recomputations included."""

    def __init__(self, slots: BlockSlots, position: int) -> None:
        self.slots = slots
        self.position = position
        self.open: list[Any] = []

    def attach(self, block: nn.Module) -> None:
        for name in ("forward", ROOT, LOOKED_AT):
            if hasattr(block, name):
                setattr(block, name, self._guarded(getattr(block, name)))
        for part in getattr(block, IN_PIECES, ()):
            part.fetch = partial(self.slots.need, self.position)
        setattr(block, STREAMED, True)
        # around the whole call, so that a checkpoint's own hooks are inside and take precedence
        block.register_forward_pre_hook(self._enter)
        block.register_forward_hook(self._leave, always_call=True)

    def _guarded(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.slots.need(self.position)
            return inner(*args, **kwargs)

        return run

    def _enter(self, *_: Any) -> None:
        hooks = torch.autograd.graph.saved_tensors_hooks(self.slots.pack, self.slots.unpack)
        hooks.__enter__()
        self.open.append(hooks)

    def _leave(self, *_: Any) -> None:
        self.open.pop().__exit__()


def _move_rest(block: nn.Module, pieces: list[Piece], device: torch.device) -> None:
    """Move buffers and parameters that train to the device; parameters that go through slots stay."""
    fetched = {id(piece.parameter) for piece in pieces}
    for module in block.modules():
        for parameter in module._parameters.values():
            if parameter is not None and id(parameter) not in fetched:
                parameter.data = parameter.data.to(device)
                if parameter.grad is not None:
                    parameter.grad.data = parameter.grad.data.to(device)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
