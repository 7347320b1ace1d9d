"""Processes that share a base, as threads of one test: the same exchanges, without the seconds that a process takes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

LIMIT_S = 20


class Member:
    """One of them. `gathered` are the sizes of what was gathered, in order."""

    def __init__(self, number: int, table: Table) -> None:
        self.number, self.count, self._table = number, table.count, table
        self.gathered: list[int] = []

    def gather(self, whole: Tensor, part: Tensor) -> None:
        whole.copy_(torch.cat(self._table.exchange(self.number, part)))
        self.gathered.append(part.nbytes)

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            tensor.copy_(self._table.exchange(self.number, tensor)[0])


class Table:
    """Where they put what the others take."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._laid: list[Tensor] = [torch.empty(0)] * count
        self._barrier = threading.Barrier(count, timeout=LIMIT_S)

    def exchange(self, number: int, tensor: Tensor) -> list[Tensor]:
        self._laid[number] = tensor.detach().clone()
        self._barrier.wait()
        taken = list(self._laid)
        self._barrier.wait()
        return taken

    def broken(self) -> None:
        self._barrier.abort()


def together(count: int, work: Callable[[Member], Any]) -> list[Any]:
    """What `work` gives for each of `count` members that run at the same time; the first exception there was."""
    table, found, wrong = Table(count), [None] * count, []

    def run(number: int) -> None:
        try:
            found[number] = work(Member(number, table))
        except BaseException as error:
            wrong.append(error)
            table.broken()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise next((error for error in wrong if not isinstance(error, threading.BrokenBarrierError)), wrong[0])
    return found
