"""Block streaming: frozen blocks wait in main memory or on disk, and are copied to the device shortly before they run.

One copy per block, into one of a few slots (slots.py), while earlier blocks compute. Nothing is ever copied back, since
frozen weights do not change. Where blocks wait, and how they are fetched from there, is up to waiting.py.
Given up: streaming weights that train.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import torch
from torch import Tensor, nn

from ..contract.errors import OptionError
from ..parts.reading_told import begun
from .rules import check_streamed
from .rules import spread as spread
from .slots import BlockSlots, Piece, check_block, lay_out
from .waiting import InMainMemory, Kept, OnDisk, Waiting

FLAG = "--blocks_to_swap"


def stream_blocks(
    blocks: nn.ModuleList, count: int, *, device: torch.device | str, slots: int = 2, pinned: bool = True,
    from_disk: bool = False,
) -> BlockStream:  # fmt: skip
    """Stream `count` of the blocks, evenly spread; put the others, and parameters that train, on `device`.

    slots: device buffers; 2 or more overlap copying with computing. pinned: page-lock the main memory (CUDA only).
    from_disk: blocks wait in files, ideally those they were loaded from (disk_loading.py). Call it after
    `compile_blocks` and before `checkpoint_blocks`. Returns the stream, which lives as long as the blocks. OptionError:
    there are fewer blocks. OutOfMemoryError, DiskError: main memory or the disk is too small.
    """
    device = torch.device(device)
    check_streamed(count, len(blocks))
    if slots < 1:
        raise OptionError(f"Streamed blocks need a buffer, not {slots}.", hint="Give --block_swap_ring_size 1 or more.")
    for block in blocks:
        if any(parameter.is_meta for parameter in block.parameters()):
            raise ValueError("stream_blocks needs loaded weights, not meta tensors")
        check_block(block, FLAG)
    chosen = spread(count, len(blocks))
    for index, block in enumerate(blocks):
        if index not in chosen:
            block.to(device)
    on_gpu = device.type == "cuda"
    home = OnDisk(device) if from_disk else InMainMemory(pinned=pinned and on_gpu, flag=FLAG)
    stream = BlockStream([blocks[index] for index in chosen], device=device, slots=slots, home=home)
    stream.indices = chosen
    return stream


class BlockStream(BlockSlots):
    """The streamed blocks; `home` keeps those that are in no slot."""

    indices: list[int]
    """Which of the model's blocks are streamed."""

    def __init__(self, blocks: list[nn.Module], *, device: torch.device, slots: int, home: Waiting) -> None:
        self.home = home
        laid_out = [lay_out(block) for block in blocks]
        self._kept: list[Kept] = []
        advance = begun(sum(size for _, size in laid_out))
        for pieces, size in laid_out:
            self._kept.append(home.keep(pieces, size))
            advance(size)  # page-locked memory comes at 1 to 2 GB/s
        self._at_rest: list[Kept] = []
        self._coming: dict[int, tuple[int, Future[Tensor]]] = {}  # by slot: position, and its bytes to come
        largest = max((size for _, size in laid_out), default=0)
        super().__init__(blocks, [pieces for pieces, _ in laid_out], bytes_each=largest, slots=slots, device=device)

    @property
    def host_bytes(self) -> int:
        return self.home.host_bytes + sum(kept.host_bytes for kept in self._kept or self._at_rest)

    def pack_blocks(self, blocks: nn.ModuleList) -> list[Kept]:
        """The weights of another model's blocks of the same kind, moved to where streamed blocks wait, for `trade`.

        `blocks`: all blocks of that model; those at `indices` are packed.
        """
        packed = []
        for index, ours in zip(self.indices, self._pieces, strict=True):
            pieces, size = lay_out(blocks[index])
            if len(pieces) != len(ours) or not all(map(Piece.looks_like, pieces, ours)):
                raise ValueError("these blocks are of another kind than the streamed ones")
            packed.append(self.home.keep(pieces, size))
        return packed

    def trade(self, coming: list[Kept]) -> list[Kept]:
        """Stream these weights (from `pack_blocks`) from now on; returns the former ones. Not during a step.

        An empty list leaves the blocks empty until the next trade.
        """
        if self._side is not None:
            torch.cuda.synchronize(self.device)  # nothing may still read or write a slot
        leaving, self._kept = self._kept, coming
        self._held, self._current = [None] * len(self._slots), None
        for slot in list(self._coming):
            self._forget(slot)
        for position, pieces in enumerate(self._pieces):
            for number, piece in enumerate(pieces):
                piece.parameter.data = coming[position].tensors[number] if coming else self._slots[0].new_empty(0)
        for position in range(min(len(self._slots), len(coming))):
            self._fetch(position, set(range(len(self._slots))))
        return leaving

    def rest(self) -> None:
        """Free the slots' device memory; the weights stay where they wait. Not during a step."""
        self._at_rest = self.trade([])
        for slot in self._slots:
            slot.untyped_storage().resize_(0)

    def wake(self) -> None:
        """Undo `rest`, before the next step."""
        for slot in self._slots:
            slot.untyped_storage().resize_(slot.nbytes)
        self._slot_at = {slot.untyped_storage().data_ptr(): index for index, slot in enumerate(self._slots)}
        self.trade(self._at_rest)

    def _send(self, position: int, slot: int) -> None:
        self._forget(slot)
        self._coming[slot] = position, self.home.ask(self._kept[position], slot, self._copied[slot])
        self._copy_what_is_there()

    def _arrive(self, slot: int) -> None:
        if slot in self._coming:
            self._coming[slot][1].result()
        self._copy_what_is_there()

    def _copy_what_is_there(self) -> None:
        for slot, (position, there) in list(self._coming.items()):
            if there.done():
                super()._send(position, slot)
                del self._coming[slot]

    def _fill(self, position: int, slot: int) -> None:
        source = self._coming[slot][1].result()
        self._slots[slot][: len(source)].copy_(source, non_blocking=True)

    def _forget(self, slot: int) -> None:
        """Cancel what was requested for this slot; a read that has begun runs to its end."""
        _, there = self._coming.pop(slot, (None, None))
        if there is not None:
            there.cancel()

    def _elsewhere(self, position: int) -> Sequence[Tensor]:
        return self._kept[position].tensors
