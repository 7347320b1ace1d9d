"""Block streaming: frozen blocks wait in main memory and are copied to the device shortly before they run.

A few slots of device memory, each as large as the largest block, are filled in turn by a copy stream of its own, one
copy a block, while earlier blocks compute. Nothing is ever copied back, since frozen weights do not change. It works
forward, backward, in the recomputation of a checkpoint and without checkpointing: a weight saved for backward is
remembered by its place and fetched again. Parameters that train (adapters) stay on the device.

Only the order is guessed (next block forward, previous one backward): a wrong guess costs time, never correctness.
On the CPU the same code runs without streams. Given up: streaming weights that train, several threads in one model.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..contract.errors import OptionError
from .host import host_bytes
from .rules import spread as spread

_ALIGNMENT = 256  # bytes: what GPU kernels expect of a tensor's start
FLAG = "--blocks_to_swap"

# attributes left on a block, so that a wrong order of wrapping is noticed
STREAMED = "_streamed"
CHECKPOINTED = "_checkpointed"
COMPILED_WITH_GRAPHS = "_compiled_with_graphs"


def stream_blocks(
    blocks: nn.ModuleList, count: int, *, device: torch.device | str, slots: int = 2, pinned: bool = True
) -> BlockStream:
    """Stream `count` of the blocks, evenly spread; put everything else of the blocks on `device`.

    slots: device buffers, 2 or more overlap copying with computing. pinned: page-lock the main memory (CUDA only).
    Call it after `compile_blocks` and before `checkpoint_blocks`. Returns the stream, which lives with the blocks.
    Raises OptionError when there are fewer blocks, OutOfMemoryError when main memory does not suffice.
    """
    device = torch.device(device)
    if not 0 <= count <= len(blocks):
        raise OptionError(
            f"{count} blocks are to be streamed, but this model has {len(blocks)}.",
            hint=f"Give {FLAG} a number from 0 to {len(blocks)}.",
        )
    if slots < 1:
        raise OptionError(f"{slots} buffers for streamed blocks.", hint="Give --block_swap_ring_size 1 or more.")
    for block in blocks:
        _check(block)
    chosen = spread(count, len(blocks))
    for index, block in enumerate(blocks):
        if index not in chosen:
            block.to(device)
    stream = BlockStream([blocks[index] for index in chosen], device=device, slots=slots, pinned=pinned)
    stream.indices = chosen
    return stream


def _check(block: nn.Module) -> None:
    if any(parameter.is_meta for parameter in block.parameters()):
        raise ValueError("stream_blocks needs loaded weights, not meta tensors")
    if hasattr(block, CHECKPOINTED):
        raise ValueError("stream_blocks comes before checkpoint_blocks: a recomputation must fetch its weights")
    if hasattr(block, STREAMED):
        raise ValueError("these blocks are streamed already")
    if hasattr(block, COMPILED_WITH_GRAPHS):
        raise OptionError(
            "This compile mode records CUDA graphs, which need weights that stay in place; streamed blocks do not.",
            hint=f"Use --compile_mode default or max-autotune-no-cudagraphs, or leave out {FLAG}.",
        )


@dataclass(frozen=True)
class _Piece:
    """One frozen parameter and where it lies in its block's buffer."""

    parameter: nn.Parameter
    start: int
    shape: torch.Size
    dtype: torch.dtype

    def view(self, buffer: Tensor) -> Tensor:
        size = self.shape.numel() * self.dtype.itemsize
        return buffer[self.start : self.start + size].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class _Place:
    """A tensor saved for backward that lies in a slot: its position's weights, and which part of them."""

    position: int
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class BlockStream:
    """The streamed blocks in their order ("positions") and the slots that hold some of them at a time."""

    indices: list[int]
    """Which of the model's blocks are streamed."""

    def __init__(self, blocks: list[nn.Module], *, device: torch.device, slots: int, pinned: bool) -> None:
        self.device = device
        self.copies = 0
        """Blocks copied so far."""
        self.waits = 0
        """Times that a block was not even on its way when it was due."""
        cuda = device.type == "cuda"
        self._side = torch.cuda.Stream(device) if cuda else None
        self._pieces, sizes = zip(*(_pieces(block) for block in blocks), strict=True) if blocks else ((), ())
        self._masters = [
            _to_host(pieces, size, pinned=pinned and cuda) for pieces, size in zip(self._pieces, sizes, strict=True)
        ]
        self._pinned = pinned and cuda
        slots = min(slots, len(blocks))
        self._slots = [torch.empty(max(sizes), dtype=torch.uint8, device=device) for _ in range(slots)]
        # made here once and for all: a view made under inference_mode could never be used in training again
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

    @property
    def host_bytes(self) -> int:
        return sum(master.nbytes for master in self._masters)

    @property
    def device_bytes(self) -> int:
        return sum(slot.nbytes for slot in self._slots)

    def need(self, position: int) -> None:
        """Have the weights at `position` in place for what is queued next, and the next ones on their way."""
        if self._current is not None and self._current != position and self._current in self._held:
            self._record(self._used[self._held.index(self._current)])
        self._current = position
        ahead = self._ahead(position)
        if position not in self._held:
            self.waits += 1
            self._fetch(position, {position})
        slot = self._held.index(position)
        if self._side is not None:
            torch.cuda.current_stream(self.device).wait_event(self._copied[slot])
        for index, following in enumerate(ahead):
            if following not in self._held:
                self._fetch(following, {position, *ahead[: index + 1]})

    def pack_blocks(self, blocks: nn.ModuleList) -> list[Tensor]:
        """The weights of other blocks of the same kind as `trade` takes them; they move to where streaming wants them.

        `blocks` are all of that model's; those at `indices` are taken.
        """
        masters = []
        for index, ours in zip(self.indices, self._pieces, strict=True):
            pieces, size = _pieces(blocks[index])
            if [(piece.shape, piece.dtype) for piece in pieces] != [(piece.shape, piece.dtype) for piece in ours]:
                raise ValueError("these blocks are of another kind than the streamed ones")
            masters.append(_to_host(pieces, size, pinned=self._pinned))
        return masters

    def trade(self, masters: list[Tensor]) -> list[Tensor]:
        """Stream these weights (of `pack_blocks`) from now on; gives those that were streamed before. Not in a step.

        With no weights at all the blocks are left empty until the next trade.
        """
        if self._side is not None:
            torch.cuda.synchronize(self.device)  # nothing may still read or write a slot
        leaving, self._masters = self._masters, masters
        self._held, self._current = [None] * len(self._slots), None
        for position, pieces in enumerate(self._pieces):
            for piece in pieces:
                piece.parameter.data = piece.view(masters[position]) if masters else self._slots[0].new_empty(0)
        for position in range(min(len(self._slots), len(masters))):
            self._fetch(position, set(range(len(self._slots))))
        return leaving

    def _ahead(self, position: int) -> list[int]:
        """The positions that come next, as many as there are other slots."""
        backward = torch._C._current_graph_task_id() != -1
        step = -1 if backward else 1
        following = [position + step * distance for distance in range(1, len(self._slots))]
        if not backward and not torch.is_grad_enabled():  # sampling: after the last block comes the first
            following = [place % len(self._masters) for place in following]
        return [place for place in following if 0 <= place < len(self._masters)]

    def _fetch(self, position: int, wanted: set[int]) -> None:
        """Copy a block into a slot that holds none of `wanted`."""
        slot = next(index for index, held in enumerate(self._held) if held is None or held not in wanted)
        leaving = self._held[slot]
        if leaving is not None:
            for piece in self._pieces[leaving]:
                piece.parameter.data = piece.view(self._masters[leaving])
        master, buffer = self._masters[position], self._slots[slot]
        with torch.cuda.stream(self._side) if self._side is not None else nullcontext():
            if self._side is not None and leaving is not None:
                self._side.wait_event(self._used[slot])
            buffer[: master.nbytes].copy_(master, non_blocking=True)
            self._record(self._copied[slot])
        for piece, view in zip(self._pieces[position], self._views[slot][position], strict=True):
            piece.parameter.data = view
        self._held[slot] = position
        self.copies += 1

    def pack(self, tensor: Tensor) -> Tensor | _Place:
        """Hook for what autograd saves: a tensor in a slot is remembered by its place, all else as it is."""
        slot = None if tensor.device.type != self.device.type else self._slot_of(tensor)
        if slot is None:
            return tensor
        position = self._held[slot]
        assert position is not None
        return _Place(position, tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset())

    def unpack(self, saved: Tensor | _Place) -> Tensor:
        """The saved tensor again, its block fetched when it has left."""
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
    """What stands before a block: its weights are called for whenever it runs, recomputations included."""

    def __init__(self, stream: BlockStream, position: int) -> None:
        self.stream = stream
        self.position = position
        self.open: list[Any] = []

    def attach(self, block: nn.Module) -> None:
        inner: Callable[..., Any] = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            self.stream.need(self.position)
            return inner(*args, **kwargs)

        block.forward = forward  # type: ignore[method-assign]
        setattr(block, STREAMED, True)
        # around the whole call, so that a checkpoint's own hooks lie inside and keep the last word
        block.register_forward_pre_hook(self._enter)
        block.register_forward_hook(self._leave, always_call=True)

    def _enter(self, *_: Any) -> None:
        hooks = torch.autograd.graph.saved_tensors_hooks(self.stream.pack, self.stream.unpack)
        hooks.__enter__()
        self.open.append(hooks)

    def _leave(self, *_: Any) -> None:
        self.open.pop().__exit__()


def _pieces(block: nn.Module) -> tuple[list[_Piece], int]:
    """The block's frozen parameters laid out one after another, and how many bytes they take."""
    pieces, end = [], 0
    for parameter in block.parameters():
        if parameter.requires_grad:
            continue
        pieces.append(_Piece(parameter, end, parameter.shape, parameter.dtype))
        end += -(-parameter.nbytes // _ALIGNMENT) * _ALIGNMENT
    if not pieces:
        raise ValueError("stream_blocks needs frozen parameters: call requires_grad_(False) first")
    return pieces, end


def _to_host(pieces: list[_Piece], size: int, *, pinned: bool) -> Tensor:
    """Move a block's parameters into one buffer in main memory."""
    master = host_bytes(size, pinned=pinned, flag=FLAG)
    for piece in pieces:
        place = piece.view(master)
        place.copy_(piece.parameter.data)
        piece.parameter.data = place
    return master


def _move_rest(block: nn.Module, pieces: list[_Piece], device: torch.device) -> None:
    """Buffers and training parameters to the device; the streamed ones stay where they are."""
    streamed = {id(piece.parameter) for piece in pieces}
    for module in block.modules():
        for parameter in module._parameters.values():
            if parameter is not None and id(parameter) not in streamed:
                parameter.data = parameter.data.to(device)
                if parameter.grad is not None:
                    parameter.grad.data = parameter.grad.data.to(device)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
