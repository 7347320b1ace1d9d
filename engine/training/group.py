"""The processes of one training: how they find each other, and the little that they exchange.

Gradients are averaged in one exchange per step, for the adapters alone; streaming, checkpointing and compilation need
not know of it. Given up: DistributedDataParallel. It would have to wrap the whole frozen model, exchanges after every
micro-batch unless told otherwise, and waits for every parameter, even of a process that has no batch left.
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
    """Whether this is process 0 of a training, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def join(device: torch.device, *, mixed_precision: str, timeout_minutes: int) -> Accelerator:
    """Join the other processes, if the environment names any, and return the accelerator for `device`.

    `timeout_minutes`: how long one process may keep the others waiting.
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
    """The model, where its weights are split over the processes, so that all of them are needed to run it.

    Implemented in memory/sharing.py. `gathered` hashes which blocks were put together in which order, which must agree
    in all processes.
    """

    gathered: int

    def led(self) -> contextlib.AbstractContextManager[None]:
        """Around what some processes, number 0 among them, do with the model."""

    def follow(self) -> None:
        """What the other processes do meanwhile: hand over their parts until it is done."""


class Group:
    """This training's processes, counted from 0. Number 0 reports and saves. With one process everything is a no-op."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.number, self.count = accelerator.process_index, accelerator.num_processes

    @property
    def leads(self) -> bool:
        """Whether this is number 0."""
        return self.number == 0

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, in a single exchange."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _broken_means_lost():
            distributed.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def add_up_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Sum the gradients. As each process has divided by the number of all micro-batches, this is their mean."""
        if self.count == 1:
            return
        learning = [parameter for parameter in parameters if parameter.requires_grad]  # not those of idle experts
        for parameter in learning:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.add_up([parameter.grad for parameter in learning])  # type: ignore[misc]

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite each tensor with that of process 0."""
        if self.count > 1:
            with _broken_means_lost():
                for tensor in tensors:
                    distributed.broadcast(tensor, src=0)

    def gather(self, whole: Tensor, part: Tensor) -> None:
        """Fill `whole` with the parts of all processes, in their order."""
        exchange = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor  # torch < 2.13
        with _broken_means_lost():
            exchange(whole, part)

    @contextlib.contextmanager
    def first(self, count: int, shared: SharedBase | None) -> Iterator[bool]:
        """Around what the first `count` processes (at least one) do with the model; yields whether this is one of them.

        Where the model is `shared`, the others stay in here and help until that is done.
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
        """The numbers of this process's passes through the model, of `count` in all; run each as it is yielded."""
        for first in range(0, count, self.count):
            with self.first(count - first, shared) as mine:
                if mine:
                    yield first + self.number
        if shared is not None and self.broadcast(shared.gathered) != shared.gathered:
            raise RuntimeError("the processes ran different blocks, so parts of different blocks were put together")

    def broadcast(self, value: T) -> T:
        """Process 0's `value`, in every process. Any value that pickle takes."""
        if self.count == 1:
            return value
        with _broken_means_lost():
            return broadcast_object_list([value])[0]

    def leave(self) -> None:
        """Leave the group once all processes have come here."""
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
            f"The processes of this training lost contact: {first_line}",
            "One of them ended or did not answer in time (--ddp_timeout). Its last words are above or in log.txt.",
        ) from error
