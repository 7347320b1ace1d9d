"""Memory-mapped files: tensors whose bytes lie in a file, which the system reads on access and may drop again.

A checkpoint is mapped read-only. `Scratch` is a file for tensors that are in no other: reserved in full, mapped
read-only too, and without a name where the system allows it, so that it disappears with its last tensor or with the
process, however that ends. `holder` finds the file that a tensor lies in, for callers that read its bytes: a failed
read raises an error, a failed access to the memory kills the process. Knows nothing of models and names.
Given up: bypassing the system's cache (O_DIRECT), which would save a copy in memory but cost machines with room for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import math
import mmap
import os
import shutil
import sys
import tempfile
import threading
import warnings
import weakref
from pathlib import Path

import torch
from torch import Tensor

from ..contract.errors import DiskError, is_full
from ..contract.files import disk_error
from .scratch_place import ADVICE, aligned, no_room, scratch_folder

_AT_ONCE = 1 << 30  # bytes; systems move less than 2 GiB per call
_STAGE = 32 << 20  # bytes of main memory through which tensors come from a GPU
_TRIMMED = 16 << 20  # bytes written between two calls of `_trim`


class MappedFile(mmap.mmap):
    """The bytes of a file that is open for reading; it lives as long as any of its tensors."""

    stream: io.FileIO
    name: str
    """For messages."""
    is_scratch: bool = False
    address: int
    _turn: threading.Lock  # for systems on which reading moves the file's position

    def __new__(cls, stream: io.FileIO, name: str) -> MappedFile:
        """Takes over `stream`. ValueError for an empty file, DiskError if the disk cannot map files."""
        try:
            mapped = super().__new__(cls, stream.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            stream.close()
            raise DiskError(
                f"{name} cannot be mapped into memory: {error.strerror or error}.",
                "Copy it to a local disk, or leave out --block_swap_from_disk.",
            ) from error
        mapped.stream, mapped.name = stream, name
        mapped.address = mapped.tensor(0, torch.uint8, (1,)).data_ptr()
        mapped._turn = threading.Lock()
        weakref.finalize(mapped, stream.close)
        _mapped.add(mapped)
        return mapped

    def tensor(self, start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """The tensor from byte `start` on. Nothing is read yet. Writing to it kills the process."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            return torch.frombuffer(self, dtype=dtype, count=math.prod(shape), offset=start).view(shape)

    def fill(self, view: memoryview, start: int) -> None:
        """Read into `view` from byte `start` on, from any thread. OSError; EOFError if the file has become shorter."""
        done = 0
        while done < len(view):
            part = view[done : done + _AT_ONCE]
            if hasattr(os, "preadv"):
                count = os.preadv(self.stream.fileno(), [part], start + done)
            else:
                with self._turn:
                    self.stream.seek(start + done)
                    count = self.stream.readinto(part)
            if not count:
                raise EOFError(f"{self.name} ended while it was being read")
            done += count


_mapped: weakref.WeakSet[MappedFile] = weakref.WeakSet()


def map_file(path: Path) -> MappedFile:
    """Map this file as it is now; returns the existing mapping if there is one."""
    stream = io.FileIO(path)
    found = os.fstat(stream.fileno())
    for mapped in _mapped:
        other = os.fstat(mapped.stream.fileno())
        if found.st_ino and (found.st_dev, found.st_ino, found.st_size) == (other.st_dev, other.st_ino, other.st_size):
            stream.close()
            return mapped
    return MappedFile(stream, str(path))


def holder(tensor: Tensor) -> tuple[MappedFile, int] | None:
    """(the file that a contiguous tensor's bytes lie in, the first byte there); None if they are in none."""
    for mapped in _mapped:
        if 0 <= (start := tensor.data_ptr() - mapped.address) < len(mapped):
            return mapped, start
    return None


class Scratch:
    """A file of `size` bytes for tensors. DiskError: there is no room for it."""

    def __init__(self, size: int) -> None:
        folder = scratch_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
            if free < size:
                raise no_room(folder, size, free)
            # without a name, or removed by the system when it is closed (Windows)
            stream = tempfile.TemporaryFile(dir=folder, prefix=".scratch-", buffering=0)  # noqa: SIM115
            _reserve(stream.fileno(), max(size, 1))
        except OSError as error:
            if is_full(error):
                raise no_room(folder, size, shutil.disk_usage(folder).free) from error
            raise disk_error(folder, error, advice=ADVICE) from error
        name = f"a scratch file in {folder}"
        self._file = MappedFile(stream, name)  # type: ignore[arg-type]  # on Windows a wrapper, which behaves alike
        self._file.is_scratch = True
        self._stage = torch.empty(0, dtype=torch.uint8)
        self._end = 0

    def put(self, tensor: Tensor) -> Tensor:
        """Write a tensor to the file; returns the same tensor as mapped from there. DiskError."""
        start, end = self._end, self._end + tensor.nbytes
        if end > len(self._file):
            raise ValueError("more was put into a scratch file than it was made for")
        try:
            self._file.stream.seek(start)
            for part in tensor.detach().contiguous().reshape(-1).view(torch.uint8).split(_STAGE):
                self._write(part)
        except OSError as error:
            raise disk_error(scratch_folder(), error, advice=ADVICE) from error
        self._end = start + aligned(tensor.nbytes)
        if end // _TRIMMED > start // _TRIMMED:
            _trim()
        return self._file.tensor(start, tensor.dtype, tuple(tensor.shape))

    def _write(self, part: Tensor) -> None:
        if part.device.type != "cpu":
            if not len(self._stage):
                self._stage = torch.empty(_STAGE, dtype=torch.uint8)
            part = self._stage[: len(part)].copy_(part)
        data, done = memoryview(part.numpy()), 0
        while done < len(data):
            done += self._file.stream.write(data[done:]) or 0


def scratch_held() -> int:
    """Bytes of the scratch files of this process; a file is freed once nothing in it is used any more."""
    return sum(len(file) for file in _mapped if file.is_scratch)


def _reserve(file: int, size: int) -> None:
    """Allocate the whole file now, so that a full disk does not come up half-way."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.ftruncate(file, size)


def _trim() -> None:
    """Return freed memory that glibc holds to the system: with small tensors that stay between large ones that come and
    go, the heap would grow by nearly everything that passed through."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
