"""From batches to tensors: reads cache files ahead of the training loop, on threads.

A batch is a dict: keys lose their dtype, `latents…` their size too; `varlen_x` becomes `x`, a list of tensors of
different lengths; all else is stacked. `timesteps` is there when the epoch's were drawn ahead, `prior` (true) when the
items are of a dataset with `preserve_prior`. Knows no family and no device. Given up: worker processes; reading
releases the interpreter lock, and spawned workers each import torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from ..contract.errors import DataError
from ..parts.batching import VARLEN
from . import cache
from .batches import Batch, BatchSampler, TrainItem


def collate(batch: Batch, *, pin_memory: bool = False) -> dict[str, Any]:
    """Read a batch. Each value is a tensor B×… or, for `varlen_…`, a list of B tensors; all on the CPU.

    DataError when a file is damaged or the items do not fit together.
    """
    columns: dict[str, list[Tensor]] = {}
    lists: set[str] = set()
    for item in batch.items:
        for key, tensor in _tensors(item).items():
            name = cache.plain_name(key)
            if name.startswith(VARLEN):
                name = name.removeprefix(VARLEN)
                lists.add(name)
            columns.setdefault(name, []).append(tensor)
    result: dict[str, Any] = {}
    for name, tensors in columns.items():
        if len(tensors) != len(batch.items):
            raise DataError(
                f"Only {len(tensors)} of {len(batch.items)} items of a batch have {name!r}: {_names(batch)}."
            )
        # The tensors of a file are windows into the mapped file; list members are copied here, not while training.
        result[name] = [tensor.clone() for tensor in tensors] if name in lists else _stack(name, tensors, batch)
    if batch.timesteps is not None:
        result["timesteps"] = torch.tensor(batch.timesteps, dtype=torch.float32)
    if pin_memory:
        result = {name: _pinned(value) for name, value in result.items()}
    return {**result, "prior": True} if batch.items[0].preserves_prior else result


def _tensors(item: TrainItem) -> dict[str, Tensor]:
    return {**cache.read(item.latent_path), **cache.read(item.text_path)}


def _stack(name: str, tensors: list[Tensor], batch: Batch) -> Tensor:
    try:
        return torch.stack(tensors)
    except RuntimeError as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise DataError(f"{name!r} has different shapes in one batch ({shapes}): {_names(batch)}.") from error


def _names(batch: Batch) -> str:
    return ", ".join(item.latent_path.name for item in batch.items)


def _pinned(value: Any) -> Any:
    return [tensor.pin_memory() for tensor in value] if isinstance(value, list) else value.pin_memory()


class Loader:
    """Iterates an epoch's batches in order, reading up to `prefetch` of them ahead on `workers` threads."""

    def __init__(self, sampler: BatchSampler, *, workers: int = 2, prefetch: int = 3, pin_memory: bool = False):
        self.sampler = sampler
        self._workers, self._prefetch, self._pin_memory = max(1, workers), max(1, prefetch), pin_memory

    def __len__(self) -> int:
        """Batches in an epoch, of all ranks together."""
        return len(self.sampler)

    def epoch(self, epoch: int, *, position: int = 0) -> Iterator[dict[str, Any]]:
        """This rank's batches of an epoch (from 0), from `position` on. Closing the iterator ends the threads."""
        ahead: deque[Future[dict[str, Any]]] = deque()
        pool = ThreadPoolExecutor(max_workers=self._workers, thread_name_prefix="batches")
        try:
            for batch in self.sampler.epoch(epoch, position=position):
                ahead.append(pool.submit(collate, batch, pin_memory=self._pin_memory))
                if len(ahead) > self._prefetch:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
