"""Tensors moved between a GPU and ordinary main memory by several threads.

One thread manages 1 to 3 GB/s, since every page of fresh memory has to be touched first. Here each thread has two
page-locked buffers: the GPU copies into or out of one while the CPU does so with the other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

THREADS = 4
STAGE_BYTES = 8 << 20  # two per thread
SMALL_BYTES = 1 << 20
_own = threading.local()

Stages = list[tuple[Tensor, torch.cuda.Event]]
"""This thread's buffers, uint8, each with what is recorded when the GPU has copied."""


def stages() -> Stages:
    """Those of this thread, made when they are first asked for."""
    if not hasattr(_own, "stages"):
        buffers = (torch.empty(STAGE_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2))
        _own.stages = [(buffer, torch.cuda.Event()) for buffer in buffers]
    found: Stages = _own.stages
    return found


def moved(tensors: Iterable[tuple[Tensor, torch.device]]) -> Iterator[Tensor]:
    """Each tensor on the device beside it, in order and complete: bit for bit what `tensor.to(device)` is."""
    with ThreadPoolExecutor(THREADS, thread_name_prefix="moving") as pool:
        yield from pool.map(lambda pair: _moved(*pair), tensors)


def to_gpu(out: Tensor, fill: Callable[[Tensor, int], bool]) -> bool:
    """Fill `out`, uint8 on the current GPU; complete on return. False as soon as `fill` says so.

    `fill` puts into a page-locked tensor what begins at this byte, and says whether there was enough.
    """
    mine = stages()
    for number, place in enumerate(out.split(STAGE_BYTES)):
        buffer, copied = mine[number % 2]
        piece = buffer[: len(place)]
        copied.synchronize()
        if not fill(piece, number * STAGE_BYTES):
            return False
        place.copy_(piece, non_blocking=True)
        copied.record()
    torch.cuda.current_stream().synchronize()  # the next user may be on another stream
    return True


def to_host(source: Tensor, out: Tensor) -> None:
    """Copy `source`, uint8 on the current GPU, to `out` in main memory; complete on return."""
    mine, coming = stages(), None
    for number, (piece, place) in enumerate(zip(source.split(STAGE_BYTES), out.split(STAGE_BYTES), strict=True)):
        buffer, copied = mine[number % 2]
        buffer[: len(piece)].copy_(piece, non_blocking=True)
        copied.record()
        if coming:
            _take(*coming)
        coming = buffer, copied, place
    if coming:
        _take(*coming)


def _take(buffer: Tensor, copied: torch.cuda.Event, place: Tensor) -> None:
    copied.synchronize()
    np.copyto(place.numpy(), buffer[: len(place)].numpy())


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    kinds = {tensor.device.type, device.type}
    if kinds != {"cuda", "cpu"} or tensor.nbytes < SMALL_BYTES or not tensor.is_contiguous():
        return tensor.to(device)
    out = torch.empty_like(tensor, device=device, requires_grad=False)
    source, target = _bytes(tensor), _bytes(out)

    def fill(piece: Tensor, start: int) -> bool:
        np.copyto(piece.numpy(), source[start : start + len(piece)].numpy())
        return True

    with torch.cuda.device(device if device.type == "cuda" else tensor.device):
        if device.type == "cuda":
            to_gpu(target, fill)
        else:
            to_host(source, target)
    return out


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().view(-1).view(torch.uint8)
