"""Where the weights of streamed blocks wait: in main memory, or in files on disk.

A block that is kept can be asked for ("its bytes will be wanted for this slot"); the answer is its bytes in main
memory, from which they are copied to the slot. What waits there is there at once. From disk one thread reads, in the
order in which it was asked, into a buffer of the slot's own, while earlier blocks are copied and compute: main memory
holds as many blocks as there are slots, whatever the model's size. What the system's cache has of the files comes at
its speed, the rest at the disk's; the cache is memory that the system takes back when somebody wants it.
Knows nothing of the order of blocks (`slots.py`), nor of how weights come into files (`disk_loading.py`).
Given up: several threads reading one block; telling the system which blocks to forget.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..contract.errors import DiskError, WeightsError
from ..ops.host import host_bytes
from ..parts.mapped_files import MappedFile, Scratch, aligned, holder
from .slots import Piece


@dataclass(frozen=True)
class Kept:
    """The frozen weights of one block while it is in no slot: `tensors`, one for each piece."""

    tensors: Sequence[Tensor]
    size: int
    """Bytes of the block in a slot."""
    host_bytes: int
    """Of these those that are in main memory."""


class Waiting(Protocol):
    """A place where blocks wait."""

    @property
    def host_bytes(self) -> int:
        """Main memory that it takes whatever it keeps."""

    def keep(self, pieces: list[Piece], size: int) -> Kept:
        """Take a block's parameters in; they move there."""

    def ask(self, kept: Kept, slot: int, after: torch.cuda.Event | None) -> Future[Tensor]:
        """The block's bytes for this slot, in main memory; `after`: when the slot's last ones have been copied."""


class InMainMemory:
    """Each block in one buffer, page-locked or not."""

    def __init__(self, *, pinned: bool, flag: str) -> None:
        """`flag` is the option that says how many blocks wait."""
        self._pinned = pinned
        self._advice = f"Lower {flag} or stream from unlocked memory (slower)" if pinned else f"Lower {flag}"
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
    """Each block where it lies in files, and a buffer for each slot, page-locked for a GPU.

    Parameters that lie in no file yet are brought to a scratch file. A thread ends with this object.
    """

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._largest = 0
        self._buffers: dict[int, Tensor] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="streamed-blocks")
        self._read_bytes, self._read_s = 0, 0.0
        weakref.finalize(self, self._thread.shutdown, wait=False, cancel_futures=True)

    @property
    def host_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers.values())

    @property
    def speed(self) -> float:
        """Bytes a second, of what has been read so far."""
        return self._read_bytes / self._read_s if self._read_s else 0.0

    def keep(self, pieces: list[Piece], size: int) -> InFiles:
        strangers = [piece for piece in pieces if holder(piece.parameter.data) is None]
        if strangers:
            scratch = Scratch(sum(aligned(piece.parameter.nbytes) for piece in strangers))
            for piece in strangers:
                piece.parameter.data = scratch.put(piece.parameter.data)
        places = [(piece.start, piece.stop, *_found(piece.parameter.data)) for piece in pieces]
        self._largest = max(self._largest, size)
        return InFiles([piece.parameter.data for piece in pieces], size, 0, places)

    def ask(self, kept: Kept, slot: int, after: torch.cuda.Event | None) -> Future[Tensor]:
        assert isinstance(kept, InFiles)
        if slot not in self._buffers:
            advice = "Lower --block_swap_ring_size"
            self._buffers[slot] = host_bytes(self._largest, pinned=self._pinned, advice=advice)
        return self._thread.submit(self._read, kept, self._buffers[slot], after)

    def _read(self, kept: InFiles, buffer: Tensor, after: torch.cuda.Event | None) -> Tensor:
        if after is not None:
            after.synchronize()
        begun_s = time.perf_counter()
        bytes_there = memoryview(buffer.numpy())
        for start, stop, file, place in kept.places:
            try:
                file.fill(bytes_there[start:stop], place)
            except EOFError as error:
                raise WeightsError(f"{error}.", "Is the file changing? Start again when it is whole.") from error
            except OSError as error:
                reason = error.strerror or str(error)
                raise DiskError(f"{file.stream.name} could not be read: {reason}.", "Check the disk.") from error
            self._read_bytes += stop - start
        self._read_s += time.perf_counter() - begun_s
        return buffer[: kept.size]


@dataclass(frozen=True)
class InFiles(Kept):
    places: list[tuple[int, int, MappedFile, int]]
    """Of each piece: its first and last byte in the block, its file and its first byte there."""


def _found(tensor: Tensor) -> tuple[MappedFile, int]:
    found = holder(tensor)
    assert found is not None
    return found
