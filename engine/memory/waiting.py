"""Where the weights of streamed blocks wait: in main memory, or in files on disk.

A block is asked for before its slot needs it; the answer is its bytes in main memory, from which they are copied to the
slot. A block that waits there is available at once. Blocks on disk are read in the order they were asked for, into a
buffer per slot, while earlier blocks are copied and compute: main memory holds as many blocks as there are slots,
whatever the model's size. Several parts of a block are read in parallel: fast disks need that, and one core is not
enough for the system's cache. That cache may drop the files' content whenever memory is needed.
Knows nothing of the order of blocks (slots.py), nor of how weights get into files (disk_loading.py).
Given up: telling the system which blocks to drop first, though in a cycle it drops the wrong ones.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ..contract.errors import DiskError, WeightsError
from ..ops.host import host_bytes
from ..parts.mapped_files import MappedFile, Scratch, aligned, holder
from .slots import Piece

READERS = 4
PART_BYTES = 16 << 20


@dataclass(frozen=True)
class Kept:
    """The frozen weights of one block while it is in no slot: `tensors`, one for each piece."""

    tensors: Sequence[Tensor]
    size: int
    """Bytes of the block in a slot."""
    host_bytes: int
    """How many of these are in main memory."""


class Waiting(Protocol):
    """A place where blocks wait."""

    @property
    def host_bytes(self) -> int:
        """Main memory that it takes besides what it keeps."""

    def keep(self, pieces: list[Piece], size: int) -> Kept:
        """Move a block's parameters to this place."""

    def ask(self, kept: Kept, slot: int, after: torch.cuda.Event | None) -> Future[Tensor]:
        """The block's bytes for this slot, in main memory. `after`: recorded once the slot's last ones were copied."""


class InMainMemory:
    """Each block in one buffer, page-locked or not."""

    def __init__(self, *, pinned: bool, flag: str) -> None:
        """`flag` is the option that says how many blocks wait."""
        self._pinned = pinned
        unlocked = "leave out --use_pinned_memory_for_block_swap, " if pinned else ""
        self._advice = f"Lower {flag}, {unlocked}or give --block_swap_from_disk (slower)"
        self.host_bytes = 0

    def keep(self, pieces: list[Piece], size: int) -> InOneBuffer:
        buffer = host_bytes(size, pinned=self._pinned, advice=self._advice)
        places = [piece.view(buffer) for piece in pieces]
        for piece, place in zip(pieces, places, strict=True):
            place.copy_(piece.parameter.data)
            piece.parameter.data = place
        return InOneBuffer(places, size, buffer.nbytes, buffer)

    def ask(self, kept: Kept, slot: int, after: torch.cuda.Event | None) -> Future[Tensor]:
        assert isinstance(kept, InOneBuffer)
        there: Future[Tensor] = Future()
        there.set_result(kept.buffer)
        return there


@dataclass(frozen=True)
class InOneBuffer(Kept):
    buffer: Tensor


class OnDisk:
    """Each block where it is in files, and a buffer for each slot, page-locked for a GPU.

    Parameters that are in no file yet are written to a scratch file. The threads end with this object.
    """

    def __init__(self, device: torch.device) -> None:
        """`device` is where the slots are."""
        self._pinned = device.type == "cuda"
        self._largest = 0
        self._buffers: dict[int, Tensor] = {}
        begin = partial(torch.cuda.set_device, device) if device.index is not None and self._pinned else None
        # this thread waits for events: without a device set it would take memory of the first GPU
        self._order = ThreadPoolExecutor(1, thread_name_prefix="streamed-blocks", initializer=begin)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="parts-of-blocks")
        self._read_bytes, self._read_s = 0, 0.0
        for threads in (self._order, self._readers):
            weakref.finalize(self, threads.shutdown, wait=False, cancel_futures=True)

    @property
    def host_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def speed(self) -> float:
        """Bytes per second, over all that was asked for so far; waits for that."""
        self._order.submit(int).result()
        return self._read_bytes / self._read_s if self._read_s else 0.0

    def keep(self, pieces: list[Piece], size: int) -> InFiles:
        strangers = [piece for piece in pieces if holder(piece.parameter.data) is None]
        if strangers:
            scratch = Scratch(sum(aligned(piece.parameter.nbytes) for piece in strangers))
            for piece in strangers:
                piece.parameter.data = scratch.put(piece.parameter.data)
        self._largest = max(self._largest, size)
        parts = [part for piece in pieces for part in _parts(piece)]
        return InFiles([piece.parameter.data for piece in pieces], size, 0, parts)

    def ask(self, kept: Kept, slot: int, after: torch.cuda.Event | None) -> Future[Tensor]:
        assert isinstance(kept, InFiles)
        if slot not in self._buffers:
            advice = "Leave out --block_swap_from_disk if there is room for the streamed blocks"
            self._buffers[slot] = host_bytes(self._largest, pinned=self._pinned, advice=advice)
        return self._order.submit(self._read, kept, self._buffers[slot], after)

    def _read(self, kept: InFiles, buffer: Tensor, after: torch.cuda.Event | None) -> Tensor:
        if after is not None:
            after.synchronize()
        begun_s = time.perf_counter()
        there = memoryview(buffer.numpy())
        parts = [self._readers.submit(part.read, there) for part in kept.parts]
        for error in [part.exception() for part in parts]:  # waits for all: none may still read when this has failed
            if error is not None:
                raise error
        self._read_s += time.perf_counter() - begun_s
        self._read_bytes += sum(part.stop - part.start for part in kept.parts)
        return buffer[: kept.size]


@dataclass(frozen=True)
class Part:
    """Bytes `start` to `stop` of a block, which are those from `place` on in a file."""

    start: int
    stop: int
    file: MappedFile
    place: int

    def read(self, block: memoryview) -> None:
        try:
            self.file.fill(block[self.start : self.stop], self.place)
        except EOFError as error:
            raise WeightsError(f"{error}.", "Is the file being changed? Start again once it is complete.") from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise DiskError(f"{self.file.name} could not be read: {reason}.", "Check the disk.") from error


@dataclass(frozen=True)
class InFiles(Kept):
    parts: list[Part]


def _parts(piece: Piece) -> Iterator[Part]:
    found = holder(piece.parameter.data)
    assert found is not None
    file, place = found
    for start in range(piece.start, piece.stop, PART_BYTES):
        yield Part(start, min(start + PART_BYTES, piece.stop), file, place + start - piece.start)
