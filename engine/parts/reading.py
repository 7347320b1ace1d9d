"""Reading a checkpoint onto a GPU, at the speed of the bus if the file is in the system's cache.

One thread that reads into fresh memory and copies from there manages 1.5 to 3 GB/s; here several read into page-locked
memory that is reused, and copying overlaps with reading. Knows nothing of models and names.
Given up: bypassing the system's cache (O_DIRECT, GPUDirect); threads if the weights stay in main memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..ops.staging import THREADS, to_gpu

AHEAD_BYTES = 384 << 20  # that may be on the device before they are needed

Key = TypeVar("Key")


def fill(view: memoryview, path: Path, start: int) -> int:
    """Read into `view` from byte `start` of the file on; returns how many bytes: fewer than asked for at its end."""
    done = 0
    with path.open("rb", buffering=0) as stream:
        stream.seek(start)
        while done < len(view):
            count = stream.readinto(view[done:])
            if not count:
                break
            done += count
    return done


def read_bytes(path: Path, start: int, length: int, *, device: torch.device) -> Tensor | None:
    """These bytes as uint8 on `device`, in memory of their own, complete on return. None: the file is too short."""
    if device.type != "cuda":
        buffer = torch.empty(length, dtype=torch.uint8)
        return buffer.to(device) if fill(memoryview(buffer.numpy()), path, start) == length else None
    with torch.cuda.device(device):
        return _staged(path, start, length, device)


def _staged(path: Path, start: int, length: int, device: torch.device) -> Tensor | None:
    out = torch.empty(length, dtype=torch.uint8, device=device)

    def piece_of_file(piece: Tensor, place: int) -> bool:
        return fill(memoryview(piece.numpy()), path, start + place) == len(piece)

    return out if to_gpu(out, piece_of_file) else None


def in_order(
    keys: Iterable[tuple[Key, int]], read: Callable[[Key], Tensor], *, device: torch.device
) -> Iterator[tuple[Key, Tensor]]:
    """(key, `read(key)`) for each (key, bytes), in this order; for a GPU the next ones are read ahead."""
    if device.type != "cuda":
        yield from ((key, read(key)) for key, _ in keys)
        return
    waiting: deque[tuple[Key, int, Future[Tensor]]] = deque()
    ahead = 0
    with ThreadPoolExecutor(THREADS, thread_name_prefix="weights") as pool:
        try:
            for key, size in keys:
                while waiting and ahead + size > AHEAD_BYTES:
                    ready, freed, tensor = waiting.popleft()
                    yield ready, tensor.result()
                    ahead -= freed
                waiting.append((key, size, pool.submit(read, key)))
                ahead += size
            while waiting:
                ready, _, tensor = waiting.popleft()
                yield ready, tensor.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
