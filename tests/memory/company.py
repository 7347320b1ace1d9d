"""Processes that share a base, as threads of one test: the same exchanges, without the seconds that a process takes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

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


class OneAtATime:
    """The default source of random numbers, which each process would have for itself, for threads.

    Checkpoints ask for its state and set it. Two threads that do so at once can wait for each other for ever: one has
    the source's own lock and wants the interpreter's, the other has that and wants the source's (seen, torch 2.13).
    """

    def __init__(self, source: torch.Generator) -> None:
        self._source, self._lock = source, threading.Lock()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._source, name)

        def locked(*given: Any) -> Any:
            with self._lock:
                return method(*given)

        return locked


def together(count: int, work: Callable[[Member], Any]) -> list[Any]:
    """What `work` gives for each of `count` members that run at the same time; the first exception there was."""
    table, found, wrong = Table(count), [None] * count, []

    def run(number: int) -> None:
        try:
            found[number] = work(Member(number, table))
        except BaseException as error:
            wrong.append(error)
            table.broken()

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    with patch.object(torch.random, "default_generator", OneAtATime(torch.default_generator)):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
    assert not any(thread.is_alive() for thread in threads), "they wait for each other"
    if wrong:
        raise next((error for error in wrong if not isinstance(error, threading.BrokenBarrierError)), wrong[0])
    return found
