"""The processes of one training: how they find each other, and the few things that they tell each other.

Gradients are averaged by one exchange a step, over the adapters alone, which streaming, checkpointing and compilation
need not know of. Given up: DistributedDataParallel. It would have to wrap the whole frozen model, exchanges after
every micro-batch unless told otherwise, and waits for every parameter, also of a process that has no batch left.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, check_cuda_p2p_ib_support
from torch import Tensor, distributed

from ..contract.errors import ProcessLost

T = TypeVar("T")


def is_first_process() -> bool:
    """Whether this is number 0 of a training's processes, or alone."""
    return os.environ.get("RANK", "0") == "0"


def join(device: torch.device, *, mixed_precision: str, timeout_minutes: int) -> Accelerator:
    """Meet the other processes, if the environment names any, and return what computes on `device` from now on.

    `timeout_minutes`: how long one may keep the others waiting.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # accelerate and NCCL take the current one
    if device.type == "cuda" and not check_cuda_p2p_ib_support():
        os.environ.update(NCCL_P2P_DISABLE="1", NCCL_IB_DISABLE="1")  # accelerate refuses such GPUs otherwise
    meeting = InitProcessGroupKwargs(timeout=timedelta(minutes=timeout_minutes))
    AcceleratorState._reset_state(True)  # accelerate keeps the last job's settings for the whole process otherwise
    GradientState._reset_state()
    with _broken_means_lost():
        return Accelerator(mixed_precision=mixed_precision, cpu=device.type == "cpu", kwargs_handlers=[meeting])


class SharedBase(Protocol):
    """The model, where the processes share out its weights and all of them are needed to run it.

    memory/sharing.py has one. `gathered` tells what was put together so far, in which order: the same in all of them.
    """

    gathered: int

    def led(self) -> contextlib.AbstractContextManager[None]:
        """Around what some do with it, number 0 among them."""

    def follow(self) -> None:
        """What the others do meanwhile."""


class Group:
    """This training's processes, counted from 0. Number 0 says and saves. Alone nothing here costs anything."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.number, self.count = accelerator.process_index, accelerator.num_processes

    @property
    def leads(self) -> bool:
        """Whether this is number 0."""
        return self.number == 0

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, all of them in one exchange."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _broken_means_lost():
            distributed.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def add_up_gradients(self, parameters: Sequence[Tensor]) -> None:
        """The mean over all processes' micro-batches: each has divided by their number already."""
        if self.count == 1:
            return
        learning = [parameter for parameter in parameters if parameter.requires_grad]  # not those of idle experts
        for parameter in learning:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.add_up([parameter.grad for parameter in learning])  # type: ignore[misc]

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite each tensor with number 0's."""
        if self.count > 1:
            with _broken_means_lost():
                for tensor in tensors:
                    distributed.broadcast(tensor, src=0)

    def gather(self, whole: Tensor, part: Tensor) -> None:
        """Fill `whole` with the parts of all processes, one after the other."""
        exchange = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor  # torch < 2.13
        with _broken_means_lost():
            exchange(whole, part)

    @contextlib.contextmanager
    def first(self, count: int, shared: SharedBase | None) -> Iterator[bool]:
        """Around what the first `count` processes (at least one) do with the model: whether this is one of them.

        Where it is shared out, the others are kept in here until that is done.
        """
        mine = self.number < count
        if shared is None or count >= self.count:
            yield mine
        elif mine:
            with shared.led():
                yield True
        else:
            shared.follow()
            yield False

    def rounds(self, count: int, shared: SharedBase | None) -> Iterator[int]:
        """Which of `count` passes through the model are this process's, one after the other; each is made meanwhile."""
        for first in range(0, count, self.count):
            with self.first(count - first, shared) as mine:
                if mine:
                    yield first + self.number
        if shared is not None and self.told_by_first(shared.gathered) != shared.gathered:
            raise RuntimeError("the processes ran different blocks, and put parts together that are none of one block")

    def told_by_first(self, value: T) -> T:
        """Number 0's value, which may be any plain one."""
        if self.count == 1:
            return value
        with _broken_means_lost():
            return broadcast_object_list([value])[0]

    def leave(self) -> None:
        """Part from the others, when all have come so far."""
        if self.count > 1:
            with _broken_means_lost():
                self._accelerator.wait_for_everyone()
            distributed.destroy_process_group()


@contextlib.contextmanager
def _broken_means_lost() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # what gloo and NCCL raise when the other end is gone
        if not distributed.is_initialized():
            raise
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ProcessLost(
            f"The processes of this training lost each other: {first_line}",
            "One of them ended or did not answer in time (--ddp_timeout). What it said stands above or in log.txt.",
        ) from error
