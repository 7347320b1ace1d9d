"""Block streaming: frozen blocks wait in main memory and are copied to the device shortly before they run.

One copy a block, into one of a few slots (`slots.py`), while earlier blocks compute. Nothing is ever copied back, since
frozen weights do not change. Given up: streaming weights that train.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..contract.errors import OptionError
from ..ops.host import host_bytes
from .rules import spread as spread
from .slots import BlockSlots, Piece, check_block, lay_out

FLAG = "--blocks_to_swap"


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
        if any(parameter.is_meta for parameter in block.parameters()):
            raise ValueError("stream_blocks needs loaded weights, not meta tensors")
        check_block(block, FLAG)
    chosen = spread(count, len(blocks))
    for index, block in enumerate(blocks):
        if index not in chosen:
            block.to(device)
    stream = BlockStream([blocks[index] for index in chosen], device=device, slots=slots, pinned=pinned)
    stream.indices = chosen
    return stream


class BlockStream(BlockSlots):
    """The streamed blocks: each has its place in main memory ("master")."""

    indices: list[int]
    """Which of the model's blocks are streamed."""

    def __init__(self, blocks: list[nn.Module], *, device: torch.device, slots: int, pinned: bool) -> None:
        self._pinned = pinned and device.type == "cuda"
        laid_out = [lay_out(block) for block in blocks]
        self._masters = [_to_host(pieces, size, pinned=self._pinned) for pieces, size in laid_out]
        self._at_rest: list[Tensor] = []
        largest = max((size for _, size in laid_out), default=0)
        super().__init__(blocks, [pieces for pieces, _ in laid_out], bytes_each=largest, slots=slots, device=device)

    @property
    def host_bytes(self) -> int:
        return sum(master.nbytes for master in self._masters or self._at_rest)

    def pack_blocks(self, blocks: nn.ModuleList) -> list[Tensor]:
        """The weights of other blocks of the same kind as `trade` takes them; they move to where streaming wants them.

        `blocks` are all of that model's; those at `indices` are taken.
        """
        masters = []
        for index, ours in zip(self.indices, self._pieces, strict=True):
            pieces, size = lay_out(blocks[index])
            if len(pieces) != len(ours) or not all(map(Piece.looks_like, pieces, ours)):
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

    def rest(self) -> None:
        """Give the slots' memory back to the device; the weights stay in main memory. Not in a step."""
        self._at_rest = self.trade([])
        for slot in self._slots:
            slot.untyped_storage().resize_(0)

    def wake(self) -> None:
        """After `rest` and before the next step: have slots again."""
        for slot in self._slots:
            slot.untyped_storage().resize_(slot.nbytes)
        self._slot_at = {slot.untyped_storage().data_ptr(): index for index, slot in enumerate(self._slots)}
        self.trade(self._at_rest)

    def _fill(self, position: int, slot: int) -> None:
        master = self._masters[position]
        self._slots[slot][: master.nbytes].copy_(master, non_blocking=True)

    def _elsewhere(self, position: int) -> Sequence[Tensor]:
        return [piece.view(self._masters[position]) for piece in self._pieces[position]]


def _to_host(pieces: list[Piece], size: int, *, pinned: bool) -> Tensor:
    """Move a block's parameters into one buffer in main memory."""
    advice = f"Lower {FLAG} or stream from unlocked memory (slower)" if pinned else f"Lower {FLAG}"
    master = host_bytes(size, pinned=pinned, advice=advice)
    for piece in pieces:
        place = piece.view(master)
        place.copy_(piece.parameter.data)
        piece.parameter.data = place
    return master
