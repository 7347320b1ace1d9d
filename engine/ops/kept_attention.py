"""Attention whose result a checkpoint keeps, so that recomputing a block in the backward pass need not run it again.

Of everything that a transformer block computes, self-attention costs most per byte of its result. While a `Shelf` is
open for writing, `own_attention` puts its output and softmax statistics there; while it is open for reading,
`own_attention` takes them back in the same order and computes nothing. Gradients come from the ordinary kernels, which
need only those two. The operator is opaque to torch.compile, so this works in compiled blocks too.

PyTorch's kernels are called by name: cuDNN from Hopper on, FlashAttention 2 elsewhere on CUDA, the CPU's for tests.
Once kernels have been measured (ops/attention_choice.py), our own for Hopper (ops/hopper_attention.py) is preferred
unless another is clearly faster; its backward pass is cuDNN's, which takes the same statistics. All training on CUDA
goes through here, even if nothing is kept, since cuDNN's backward pass must be given whole tiles; so does attention in
8 bits, with gradients of its own (ops/eight_bit_gradients.py). Given up: masks, dropout, GPUs older than Ampere (see
`can_compute`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention_choice import taken
from .attention_sizes import COPIES, GROUPS, TILE, is_room
from .device import free_bytes
from .eight_bit_gradients import attend, differentiate
from .hopper_attention import can_run, hopper_attention, is_worth_more, may_run

KEEP_FROM = 2048
"""Keys. Attention to fewer (a text's) is cheap enough to recompute."""

_HAS_FLASH = torch.backends.cuda.is_flash_attention_available()  # not in every build of torch

Pair = tuple[Tensor, Tensor]
Kernels = tuple[Callable[..., Pair], Callable[..., Any]]
"""(forward, which gives output and statistics; backward), on BHLD tensors."""
_aten = torch.ops.aten


class Store(Protocol):
    """Where a shelf puts tensors: device memory as they are, or main memory (memory/checkpointing.py)."""

    def put(self, *tensors: Tensor) -> tuple[Any, ...]: ...

    def take(self, kept: Any) -> Tensor: ...


class Shelf:
    """What one run of a checkpointed block keeps, oldest first. Can be read each time the block is run again.

    `once`: for compiled graphs that run without autograd and overwrite tensors they no longer need. The shelf keeps
    copies, and hands each out only once: there can be no second backward pass.
    """

    def __init__(self, store: Store | None = None, *, keep_from: int = KEEP_FROM, once: bool = False) -> None:
        self._store, self.keep_from, self._once = store, keep_from, once
        self._kept: list[tuple[Any, ...]] = []
        self._next = 0
        self._reading = False

    def contexts(self) -> tuple[_Open, _Open]:
        """For torch.utils.checkpoint: one to run the block in, one to run it again in."""
        return _Open(self, reading=False), _Open(self, reading=True)

    def begin(self, *, reading: bool) -> None:
        """Start again at the first result, to put results here or take them."""
        self._reading, self._next = reading, 0

    def result(self, compute: Callable[[], Pair]) -> Pair:
        """The result kept at this place (reading), or that of `compute`, which is kept (writing)."""
        if self._reading:
            out, statistics = self._kept[self._next]
            if self._once:
                if out is None:
                    raise RuntimeError("results of attention were kept for one backward pass, and this is a second one")
                self._kept[self._next] = (None, None)
            self._next += 1
            return (out, statistics) if self._store is None else (self._store.take(out), self._store.take(statistics))
        made = compute()
        out, statistics = (part.clone() for part in made) if self._once else made
        self._kept.append((out, statistics) if self._store is None else self._store.put(out, statistics))
        return made


class _Open:
    """A context in which attention uses this shelf. Can be entered repeatedly."""

    def __init__(self, shelf: Shelf, *, reading: bool) -> None:
        self._shelf, self._reading = shelf, reading
        self._before: tuple[Shelf | None, int | None] = (None, None)

    def __enter__(self) -> None:
        global _open_shelf, _keep_from
        self._before = _open_shelf, _keep_from
        _open_shelf, _keep_from = self._shelf, self._shelf.keep_from
        self._shelf.begin(reading=self._reading)

    def __exit__(self, *_: object) -> None:
        global _open_shelf, _keep_from
        _open_shelf, _keep_from = self._before


_open_shelf: Shelf | None = None
_keep_from: int | None = None  # the open shelf's; a plain number, which torch.compile can guard on


def is_kept(q_BLHD: Tensor, k_BLHD: Tensor) -> bool:
    """Whether attention of these is kept, through `own_attention`: a shelf is open, and there are enough keys."""
    return _keep_from is not None and k_BLHD.shape[1] >= _keep_from and can_compute(q_BLHD)


def can_compute(q_BLHD: Tensor) -> bool:
    """Whether there is a kernel here for this device, type and head size."""
    if q_BLHD.device.type == "cpu":
        return True
    if q_BLHD.device.type != "cuda" or torch.cuda.get_device_capability(q_BLHD.device) < (8, 0):
        return False
    half = compute_dtype(q_BLHD) in (torch.float16, torch.bfloat16)
    return _HAS_FLASH and half and q_BLHD.shape[-1] % 8 == 0 and q_BLHD.shape[-1] <= 256


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The type attention computes in: autocast's if that is on, which leaves float64 alone; else the tensor's."""
    kind = tensor.device.type
    cast = torch.is_autocast_enabled(kind) and tensor.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if cast else tensor.dtype


def own_attention(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, *, keep: bool, eight_bit: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, [B, L of q, H, D]. `keep`: put it on the open shelf, or take it from there."""
    dtype = compute_dtype(q_BLHD)
    return _attention(q_BLHD.to(dtype), k_BLHD.to(dtype), v_BLHD.to(dtype), keep, eight_bit)[0]


@torch.library.custom_op("musubi::kept_attention", mutates_args=())
def _attention(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, keep: bool, eight_bit: bool) -> tuple[Tensor, Tensor]:
    """(out [B, L, H, D], logsumexp [B, H, L] or what 8 bits need [2·B, H, L] float32), both contiguous."""

    def compute() -> Pair:
        forward, _ = _kernels(q_BLHD, k_BLHD, v_BLHD, eight_bit)
        out_BHLD, statistics = forward(*(part.transpose(1, 2) for part in (q_BLHD, k_BLHD, v_BLHD)))
        _, length, heads, _ = q_BLHD.shape
        return out_BHLD.transpose(1, 2).contiguous(), statistics.reshape(-1, heads, length).contiguous()

    out_BLHD, statistics = _open_shelf.result(compute) if keep and _open_shelf is not None else compute()
    return out_BLHD.detach(), statistics.detach()  # autograd marks what is returned: spare the shelf's tensors


@_attention.register_fake
def _(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, keep: bool, eight_bit: bool) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = q_BLHD.shape
    out = q_BLHD.new_empty(q_BLHD.shape)
    return out, q_BLHD.new_empty((2 * batch if eight_bit else batch, heads, length), dtype=torch.float32)


@torch.library.custom_op("musubi::kept_attention_backward", mutates_args=())
def _attention_backward(
    grad_BLHD: Tensor, q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, out_BLHD: Tensor, statistics: Tensor,
    eight_bit: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    _, backward = _kernels(q_BLHD, k_BLHD, v_BLHD, eight_bit)
    parts = (part.transpose(1, 2) for part in (grad_BLHD, q_BLHD, k_BLHD, v_BLHD, out_BLHD))
    grads = backward(*parts, statistics)
    q_grad, k_grad, v_grad = (grad.transpose(1, 2).contiguous() for grad in grads)
    return q_grad, k_grad, v_grad


@_attention_backward.register_fake
def _(grad_BLHD, q_BLHD, k_BLHD, v_BLHD, out_BLHD, statistics, eight_bit):  # type: ignore[no-untyped-def]
    return tuple(part.new_empty(part.shape) for part in (q_BLHD, k_BLHD, v_BLHD))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Pair) -> None:
    ctx.save_for_backward(*inputs[:3], *output)
    ctx.eight_bit = inputs[4]
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad_BLHD: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_attention_backward(grad_BLHD.contiguous(), *ctx.saved_tensors, ctx.eight_bit), None, None


_attention.register_autograd(_differentiate, setup_context=_save)


# --------------------------------------------------------------------------------------------- PyTorch's kernels


def _kernels(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, eight_bit: bool = False) -> Kernels:
    """For BLHD tensors on this device; the same for the forward and the backward call of one shape."""
    if eight_bit:
        return _KERNELS["8bit"]
    if q_BLHD.device.type == "cpu":
        return _cpu_forward, _cpu_backward
    possible = _possible(q_BLHD, k_BLHD, v_BLHD)
    chosen = taken(q_BLHD.device, q_BLHD.dtype, q_BLHD.shape[-1], learning=True)
    return _KERNELS[chosen if chosen in possible else possible[0]]


def trials(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> dict[str, Callable[[], object]]:
    """Forward and backward of each kernel to choose from on this GPU, the usual one first.

    Our own counts as the usual one where it runs: it shares cuDNN's backward pass, so its gain is a small part of the
    whole, too small for the margin.
    """
    names = _possible(q_BLHD, k_BLHD, v_BLHD)
    if "hopper" in names:
        names.remove("hopper")
        if can_run(q_BLHD.device, q_BLHD.dtype, q_BLHD.shape[-1]):
            names.insert(0, "hopper")
    return {name: partial(_there_and_back, name, q_BLHD, k_BLHD, v_BLHD) for name in names}


def _there_and_back(name: str, *parts_BLHD: Tensor) -> object:
    forward, backward = _KERNELS[name]
    parts_BHLD = [part.transpose(1, 2) for part in parts_BLHD]
    out, statistics = forward(*parts_BHLD)
    out = out.transpose(1, 2).contiguous().transpose(1, 2)
    return backward(out, *parts_BHLD, out, statistics.reshape(out.shape[:3]).contiguous())


def _possible(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> list[str]:
    """Names of kernels, the usual one first. Whether our own `can_run` is checked in `trials`, not in every call."""
    parts = (part.detach().transpose(1, 2) for part in (q_BLHD, k_BLHD, v_BLHD))
    asked = torch.backends.cuda.SDPAParams(*parts, None, 0.0, False, False)
    hopper = torch.cuda.get_device_capability(q_BLHD.device)[0] >= 9
    # not float16: a key of zeros, which pads a tile, weighs e^-logsumexp, which easily overflows float16
    if hopper and q_BLHD.dtype == torch.bfloat16 and torch.backends.cuda.can_use_cudnn_attention(asked):
        own = ["hopper"] if is_worth_more(k_BLHD, v_BLHD) and may_run(q_BLHD.device, q_BLHD.shape[-1]) else []
        return ["cudnn", "flash", *own]
    return ["flash"]


def _cpu_forward(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    return _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)


def _cpu_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, statistics: Tensor) -> Any:
    return _aten._scaled_dot_product_flash_attention_for_cpu_backward(grad, q, k, v, out, statistics, 0.0, False)


def _cudnn_forward(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    result = _aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)
    return result[0], result[1]


def _cudnn_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, statistics: Tensor) -> Any:
    rows, columns = q.shape[2], k.shape[2]
    if not (rows % TILE or columns % TILE):
        return _cudnn_backward_of_tiles(grad, q, k, v, out, statistics)
    # padding has no effect: its queries give every key weight 0, and its keys and values are 0
    statistics = F.pad(statistics, (0, -rows % TILE), value=1e4)
    parts = (grad, q, k, v, out, statistics)
    if _is_room_for(grad, q, k, v, out):
        found = _cudnn_backward_of_tiles(*map(_whole_tiles, parts[:5]), statistics)
        return [one[:, :, :length] for one, length in zip(found, (rows, columns, columns), strict=True)]
    made = [torch.empty_like(part) for part in (q, k, v)]
    for *heads, weights, q_grad, k_grad, v_grad in zip(*(x.chunk(GROUPS, 1) for x in (*parts, *made)), strict=True):
        found = _cudnn_backward_of_tiles(*map(_whole_tiles, heads), weights)
        for target, one in zip((q_grad, k_grad, v_grad), found, strict=True):
            target.copy_(one[:, :, : target.shape[2]])
    return made


def _is_room_for(*copies: Tensor) -> bool:
    return is_room(free_bytes(copies[0].device), sum(part.nbytes for part in copies) / COPIES)


def _whole_tiles(part_BHLD: Tensor) -> Tensor:
    """Padded with zeros. In BLHD order, and so are the gradients: those of a single sample are trimmed without a
    copy."""
    batch, heads, length, width = part_BHLD.shape
    whole_BLHD = part_BHLD.new_empty((batch, -(-length // TILE) * TILE, heads, width))
    whole_BLHD[:, :length] = part_BHLD.transpose(1, 2)
    whole_BLHD[:, length:] = 0
    return whole_BLHD.transpose(1, 2)


def _cudnn_backward_of_tiles(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, statistics: Tensor) -> Any:
    seed = _no_seed(q.device)
    return _aten._scaled_dot_product_cudnn_attention_backward(
        grad, q, k, v, out, statistics.unsqueeze(-1), seed, seed, None, None, None, q.shape[2], k.shape[2], 0.0, False
    )


def _hopper_forward(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    out_BLHD, statistics = hopper_attention(*(part.transpose(1, 2) for part in (q, k, v)))
    return out_BLHD.transpose(1, 2), statistics


def _eight_bit_forward(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    out_BLHD, statistics = attend(*(part.transpose(1, 2) for part in (q, k, v)))
    return out_BLHD.transpose(1, 2), statistics


def _eight_bit_backward(*parts: Tensor) -> Any:
    *tokens, statistics = parts
    grads = differentiate(*(part.transpose(1, 2) for part in tokens), statistics)
    return [grad.transpose(1, 2) for grad in grads]


def _flash_forward(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    result = _aten._scaled_dot_product_flash_attention(q, k, v)
    return result[0], result[1]


def _flash_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, statistics: Tensor) -> Any:
    state = torch.zeros(2, dtype=torch.uint64, device=q.device)
    unused = torch.empty((), dtype=torch.uint64, device=q.device)
    return _aten._scaled_dot_product_flash_attention_backward(
        grad, q, k, v, out, statistics, None, None, q.shape[2], k.shape[2], 0.0, False, state, unused
    )


_KERNELS: dict[str, Kernels] = {
    "cudnn": (_cudnn_forward, _cudnn_backward),
    "flash": (_flash_forward, _flash_backward),
    "hopper": (_hopper_forward, _cudnn_backward),
    "8bit": (_eight_bit_forward, _eight_bit_backward),
}


def _no_seed(device: torch.device) -> Tensor:
    """Dropout's seed and offset, which the kernels require although there is no dropout."""
    return torch.zeros((), dtype=torch.int64, device=device)
