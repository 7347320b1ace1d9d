"""Initial values and changes of LoHa and LoKr, by lycoris-lora's own functions. Parts are named as in LoRA files.

Import this module only inside the functions that need it: `import lycoris` loads all of lycoris, half a second on top
of torch._dynamo, and only training these adapters needs it. This module applies lycoris' conventions and chooses its
backend. By default lycoris chooses at every call: it compiles single operations with torch.compile, times its kernels
when it first meets a size (the first step stalls and takes memory that was not planned for) and takes the fastest,
which may add up in any order. Here there are two choices, and each gives the same numbers in every run:
- its Triton kernels, as its model of the GPU ranks them without timing (none of these adds atomically; a table in
  ~/.cache/lycoris_kernels, left by another program that did time them, is still followed);
- PyTorch's operations: on a CPU, without Triton or a C compiler for it, before NVIDIA's Ampere, for factors larger than
  the kernels take, and under torch.compile, which fuses them itself.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from lycoris.functional import loha, lokr
from lycoris.kernels import set_tuning
from lycoris.kernels.dispatch import demote
from torch import Tensor

set_tuning(False)
demote("compile")
_logger = logging.getLogger("LyCORIS")  # its own handler writes to stdout; pass its records on to our log instead
_logger.handlers.clear()
_logger.propagate = True

_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")


def loha_parts(rows: int, columns: int, rank: int, *, generator: torch.Generator | None) -> dict[str, Tensor]:
    """Initial values for a weight [rows, columns], on the default device."""
    with _drawn_from(generator):
        zero_b, zero_a, other_b, other_a, *_ = loha.weight_gen(_like(rows, columns), rank, tucker=False)
    # the factor that starts at zero is the second, as in musubi-tuner's and lycoris' modules
    return dict(zip(_LOHA, (other_a, other_b, zero_a, zero_b), strict=True))


def lokr_parts(
    rows: int,
    columns: int,
    rank: int,
    *,
    factor: int,
    full_matrix: bool,
    decompose_both: bool,
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    """Initial values for a weight [rows, columns], on the default device, in the shapes of kronecker.py."""
    rank = max(rows, columns) if full_matrix else rank  # lycoris reads its own full_matrix for convolutions only
    with _drawn_from(generator):
        made = lokr.weight_gen(_like(rows, columns), rank, tucker=False, factor=factor, decompose_both=decompose_both)
    return {name: part for name, part in zip(_LOKR, made, strict=False) if part is not None}


def loha_weight(parts: Mapping[str, Tensor], *, scale: float) -> Tensor:
    """scale * (w1_a @ w1_b) * (w2_a @ w2_b), [rows, columns]. Only the factors are kept for backward."""
    w1_a, w1_b, w2_a, w2_b = (parts[name] for name in _LOHA)
    backend = _backend(w1_a)
    # the PyTorch path takes only a tensor; the kernels would have to wait for one on the GPU
    gamma = scale if backend == "triton" else torch.full((), scale, dtype=torch.float32, device=w1_a.device)
    return loha.diff_weight(w1_b, w1_a, w2_b, w2_a, None, None, gamma=gamma, backend=backend)


def lokr_weight(parts: Mapping[str, Tensor], *, scale: float) -> Tensor:
    """scale * kron(w1, w2), [rows, columns]. Either is whole, or the product of w_a and w_b."""
    backend = _backend(next(iter(parts.values())))
    return lokr.kron_weight(*[parts.get(name) for name in _LOKR], scale=scale, backend=backend)


def lokr_applied(x: Tensor, parts: Mapping[str, Tensor], *, scale: float) -> Tensor:
    """x [..., columns] times the transpose of that weight, [..., rows], factor by factor: it is never built."""
    return lokr.kron_bypass(x, *[parts.get(name) for name in _LOKR], scale=scale, backend=_backend(x))


def _like(rows: int, columns: int) -> Tensor:
    return torch.empty(rows, columns, device="meta")


@contextmanager
def _drawn_from(generator: torch.Generator | None) -> Iterator[None]:
    """Inside, torch's global random numbers, which lycoris draws from, are those of `generator` (None: unchanged)."""
    if generator is None:
        yield
        return
    with torch.random.fork_rng(devices=()):
        torch.set_rng_state(generator.get_state())
        yield
        generator.set_state(torch.get_rng_state())


def _backend(tensor: Tensor) -> str:
    if torch.compiler.is_compiling() or not tensor.is_cuda:
        return "torch"
    return "triton" if _kernels_work(tensor.device) else "torch"


@functools.cache
def _kernels_work(device: torch.device) -> bool:
    """Whether Triton's kernels run: tried once on each GPU, forward and backward.

    In a thread of its own: the first call is often inside a checkpoint, which counts the tensors that its thread saves
    for backward and would miss those of the trial in the recomputation.
    """
    if importlib.util.find_spec("triton") is None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    with ThreadPoolExecutor(1) as pool:
        error = pool.submit(_trial, device).result()
    if error is not None:
        warnings.warn(f"Triton cannot compile kernels here, so LoHa and LoKr are slower: {error}", stacklevel=2)
    return error is None


def _trial(device: torch.device) -> Exception | None:
    try:
        probe = torch.ones(16, 16, device=device, requires_grad=True)
        loha.diff_weight(probe, probe, probe, probe, None, None, backend="triton").sum().backward()
    except (RuntimeError, OSError, ImportError) as error:
        return error
    return None
