"""Counting the bytes of tensors that only have sizes: what a full-size model takes, on a machine without a GPU.

Real modules run under FakeTensorMode, on "cpu" tensors that stand for a GPU's; `Counter` follows every storage from its
making to its end. What CUDA has as one kernel and a CPU as several operations is replaced here: RMS norm and attention.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from engine.memory import checkpointing
from engine.ops import attention, kept_attention

ALIGNMENT = 512  # bytes: CUDA's allocator rounds up to it
FAKE = FakeTensorMode()  # one for all: rotary tables are kept from one model to the next


class Counter(TorchDispatchMode):
    """`live` bytes now, `peak` the most so far."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor) and value.device.type == "cpu":
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT
            self.live += self._sizes[key]
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


class _RmsNorm(torch.autograd.Function):
    """Keeps its input only, as CUDA's kernel does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.empty_like(grad)


class _Attention(torch.autograd.Function):
    """Keeps q, k, v, the result and its statistics; gradients go through ops/kept_attention.py where there are many
    keys, as in `_sdpa` and `_auto`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, length, heads, _ = q.shape
        out, statistics = torch.empty_like(q), torch.empty(batch, heads, length, dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, statistics)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        *parts, statistics = ctx.saved_tensors
        q, k, v, out = (part.transpose(1, 2) for part in parts)
        found = kept_attention._cudnn_backward(grad.transpose(1, 2), q, k, v, out, statistics)
        return tuple(part.transpose(1, 2).contiguous() for part in found)


def _kernel(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, statistics: Tensor) -> list[Tensor]:
    """cuDNN's, which adds the gradient of q up in float32."""
    _in_32_bits = torch.empty(q.shape, dtype=torch.float32)
    return [torch.empty_like(part) for part in (q, k, v)]


def _attention(*parts: Tensor) -> Tensor:
    q, k, v = (part.bfloat16() for part in parts)
    return _Attention.apply(q, k, v) if torch.is_grad_enabled() else torch.empty_like(q)


@contextmanager
def counted(*, room: bool = True) -> Iterator[Counter]:
    """Inside, every tensor is only a size, and is counted. `room`: gradients of attention are computed of all heads
    together (ops/kept_attention.py)."""
    counter = Counter()
    as_on_a_gpu = (
        mock.patch.object(F, "rms_norm", lambda x, shape, weight=None, eps=None: _RmsNorm.apply(x)),
        mock.patch.dict(attention._kernels, {"auto": _attention}),
        mock.patch.object(kept_attention, "_cudnn_backward_of_tiles", _kernel),
        mock.patch.object(kept_attention, "_is_room_for", lambda *parts: room),
        # main memory, which is not counted
        mock.patch.object(checkpointing, "host_bytes", lambda count, **_: torch.empty(count, device="meta").byte()),
        mock.patch.object(checkpointing._Lane, "copy", lambda lane, target, source: None),
    )
    with ExitStack() as stack:
        for patch in as_on_a_gpu:
            stack.enter_context(patch)
        stack.enter_context(FAKE)
        yield stack.enter_context(counter)


def settle(module: nn.Module) -> None:
    """Give a module on "meta" tensors that are counted. Inside `counted` only."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                fresh = torch.empty(parameter.shape, dtype=parameter.dtype)
                part._parameters[name] = nn.Parameter(fresh, requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
