"""Attention: one function, many backends.

`auto` takes the fastest kernel that rounds no more than PyTorch's: on CUDA the one that `choose_kernel` measured as
fastest, before it has run a fixed order. The other names pin a kernel. `flash2`, `flash3`, `xformers` and `sageattn`
need their package, imported on first use; `8bit` (ops/eight_bit_attention.py) needs a GPU that multiplies in float8,
and its gradients need Hopper. Our own kernel for Hopper (ops/hopper_attention.py) cannot be pinned.
Different key lengths in a batch never become a dense mask: keys are cut off, sample by sample if lengths differ.
Knows nothing of models. Given up: dropout, causal attention, masks other than key lengths and a repeated last key.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..contract.errors import OptionError
from ..contract.packages import how_to_install
from .attention_backends import BACKENDS, PACKAGES, installed_backends
from .attention_choice import Asked, Choice, Clock, choose, taken
from .eight_bit_attention import eight_bit_attention, is_worth_it, missing
from .eight_bit_gradients import missing as without_gradients
from .hopper_attention import can_run, hopper_attention, is_worth_more
from .kept_attention import can_compute, compute_dtype, is_kept, own_attention, trials

_CUDA_KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
"""Fastest first, measured on an H100 in bf16 with 32,760 tokens and 40 heads: cuDNN 37 ms, flash 59, efficient 120.
The choice of `choose_kernel` on the GPU at hand takes precedence.

PyTorch's own order starts with flash. Forward and backward of both agree with float32 up to bf16's rounding.
"""
_EXACT_PACKAGES = ("flash2", "flash3", "xformers")
_TRIED_TOKENS, _TRIED_HEADS = 32768, 12
"""The size of the trial: as many tokens as a video has, since kernels differ in what a card can sustain, and enough
heads that the last wave of thread blocks, which leaves most of the GPU idle, does not decide. Time of our kernel over
cuDNN's on an H100: 1.07 with 16,384 tokens and 8 heads, 0.93 with 24 heads, 0.84 with 32,768 tokens and 12 heads; in
Wan's attention itself 0.83."""
_SHORT_PAIRS = 1 << 16  # queries times keys; measured with 3 and 12 heads of 64 and 128

_WEIGHING = ("auto", "sdpa", "torch")

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
_kernels: dict[str, Kernel] = {}  # those looked up so far; a plain dict, which torch.compile can trace


def attention(
    q_BLHD: torch.Tensor,
    k_BLHD: torch.Tensor,
    v_BLHD: torch.Tensor,
    *,
    key_lengths_B: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """softmax(q k^T / sqrt(D)) v for each sample and head: [B, L of q, H, D] in v's dtype.

    `key_lengths_B` (integers, 1 … L of k, on the CPU, since reading them from a GPU would wait for it): how many keys
    of each sample count; None: all. q, k and v have the same number of heads.
    OptionError: the backend is unknown, its package is missing, or it cannot do what is asked of it.
    """
    kernel = _kernels.get(backend) or _find_kernel(backend)
    if backend.startswith(("flash", "sage")):
        _check_dtype(backend, q_BLHD)
    if backend == "sageattn":
        _check_gradient(q_BLHD, k_BLHD, v_BLHD)
    if key_lengths_B is None:
        return kernel(q_BLHD, k_BLHD, v_BLHD)
    lengths = [int(length) for length in key_lengths_B.tolist()]
    if len(lengths) != len(q_BLHD) or min(lengths) < 1 or max(lengths) > k_BLHD.shape[1]:
        raise ValueError(f"key lengths {lengths} for {len(q_BLHD)} samples of {k_BLHD.shape[1]} keys")
    if len(set(lengths)) == 1:
        return kernel(q_BLHD, k_BLHD[:, : lengths[0]], v_BLHD[:, : lengths[0]])
    samples = [
        kernel(q_BLHD[i : i + 1], k_BLHD[i : i + 1, :length], v_BLHD[i : i + 1, :length])
        for i, length in enumerate(lengths)
    ]
    return torch.cat(samples)


def padded_attention(
    q_BLHD: torch.Tensor, k_BLHD: torch.Tensor, v_BLHD: torch.Tensor, *, padding: int, backend: str = "auto"
) -> torch.Tensor:
    """`attention` where the last key and value stand for `padding` more copies of themselves, as tokens of padding
    do."""
    if padding and backend in _WEIGHING and _is_weighed(q_BLHD, k_BLHD):
        return _weighed(q_BLHD, k_BLHD, v_BLHD, 1 + padding)
    if padding:
        k_BLHD, v_BLHD = (_repeated(part, 1 + padding) for part in (k_BLHD, v_BLHD))
    return attention(q_BLHD, k_BLHD, v_BLHD, backend=backend)


def available_backends(device: torch.device | None = None) -> list[str]:
    """The backends that work on this machine: the installed ones, and with a device also those that have to be tried
    out on it, which takes seconds."""
    has_8bit = device is not None and device.type != "cpu" and not missing(device)
    return [*installed_backends(), *(["8bit"] if has_8bit else [])]


def check_backend(backend: str, device: torch.device | None = None, *, learning: bool = False) -> None:
    """OptionError if `backend` cannot work on this machine or, if one is given, on this device; `learning`: with
    gradients.

    For use before anything is loaded. `8bit` is tried out on the device, which takes seconds the first time, with
    gradients up to a minute.
    """
    _find_kernel(backend)
    if backend != "8bit" or device is None:
        return
    why = missing(device) or (without_gradients(device) if learning else None)
    if why is not None:
        raise OptionError(
            f"The attention backend 8bit cannot be used here: {why}.",
            "Leave out --attn_8bit: the best attention is then chosen automatically."
            if learning
            else "Use --attn_mode auto, or sageattn, whose package supports more GPUs.",
        )


def _find_kernel(backend: str) -> Kernel:
    if backend not in BACKENDS:
        raise OptionError(f"There is no attention backend {backend!r}.", f"Choose one of {', '.join(BACKENDS)}.")
    name = backend
    if backend == "flash":
        name = "flash3" if importlib.util.find_spec("flash_attn_interface") else "flash2"
    makers: dict[str, Callable[[], Kernel]] = {
        "auto": lambda: _auto,
        "sdpa": lambda: _sdpa,
        "torch": lambda: _sdpa,
        "math": lambda: _math,
        "flash2": lambda: _imported("flash2"),
        "flash3": lambda: _first_result(_imported("flash3")),
        "xformers": lambda: _imported("xformers"),
        "sageattn": lambda: _sage(_imported("sageattn")),
        "8bit": lambda: _eight_bit,
    }
    _kernels[backend] = makers[name]()
    return _kernels[backend]


def _sdpa(q_BLHD: torch.Tensor, k_BLHD: torch.Tensor, v_BLHD: torch.Tensor) -> torch.Tensor:
    if is_kept(q_BLHD, k_BLHD):
        return own_attention(q_BLHD, k_BLHD, v_BLHD, keep=True)
    if q_BLHD.is_cuda and _learns(q_BLHD, k_BLHD, v_BLHD):
        # not cuDNN, whose backward pass needs whole tiles
        with sdpa_kernel([_CUDA_KERNELS[name] for name in ("flash", "efficient", "math")], set_priority=True):
            return _pytorch(q_BLHD, k_BLHD, v_BLHD)
    if _is_short_on_a_cpu(q_BLHD, k_BLHD) and _learns(q_BLHD, k_BLHD, v_BLHD):
        return _pytorch(q_BLHD.float(), k_BLHD.float(), v_BLHD.float()).to(v_BLHD.dtype)
    return _pytorch(q_BLHD, k_BLHD, v_BLHD)


def _is_short_on_a_cpu(q_BLHD: torch.Tensor, k_BLHD: torch.Tensor) -> bool:
    """Whether PyTorch's backward pass is slower in bfloat16 than in float32: up to three times, casts included."""
    pairs = q_BLHD.shape[1] * k_BLHD.shape[1]
    return q_BLHD.device.type == "cpu" and q_BLHD.dtype == torch.bfloat16 and pairs <= _SHORT_PAIRS


def _pytorch(
    q_BLHD: torch.Tensor, k_BLHD: torch.Tensor, v_BLHD: torch.Tensor, weight_111L: torch.Tensor | None = None
) -> torch.Tensor:
    q_BHLD, k_BHLD, v_BHLD = (part.transpose(1, 2) for part in (q_BLHD, k_BLHD, v_BLHD))
    return F.scaled_dot_product_attention(q_BHLD, k_BHLD, v_BHLD, attn_mask=weight_111L).transpose(1, 2)


def _is_weighed(q_BLHD: torch.Tensor, k_BLHD: torch.Tensor) -> bool:
    """Whether a mask can stand for repeated keys: on a CPU. bfloat16 cannot hold the logarithm of their number."""
    return q_BLHD.device.type == "cpu" and (q_BLHD.dtype == torch.float32 or _is_short_on_a_cpu(q_BLHD, k_BLHD))


def _weighed(q_BLHD: torch.Tensor, k_BLHD: torch.Tensor, v_BLHD: torch.Tensor, times: int) -> torch.Tensor:
    """n equal keys weigh as much as one whose score is larger by log n: e^(s + log n) = n e^s."""
    weight_111L = torch.zeros(1, 1, 1, k_BLHD.shape[1])
    weight_111L[..., -1] = math.log(times)
    return _pytorch(q_BLHD.float(), k_BLHD.float(), v_BLHD.float(), weight_111L).to(v_BLHD.dtype)


def _repeated(part_BLHD: torch.Tensor, times: int) -> torch.Tensor:
    return torch.cat([part_BLHD, part_BLHD[:, -1:].expand(-1, times - 1, -1, -1)], dim=1)


def _learns(*parts: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and any(part.requires_grad for part in parts)


def _auto(q_BLHD: torch.Tensor, k_BLHD: torch.Tensor, v_BLHD: torch.Tensor) -> torch.Tensor:
    if not q_BLHD.is_cuda or is_kept(q_BLHD, k_BLHD):
        return _sdpa(q_BLHD, k_BLHD, v_BLHD)
    if not _learns(q_BLHD, k_BLHD, v_BLHD):
        return _for_results_alone(q_BLHD, k_BLHD, v_BLHD)
    if can_compute(q_BLHD):
        return own_attention(q_BLHD, k_BLHD, v_BLHD, keep=False)
    return _fastest(q_BLHD, k_BLHD, v_BLHD)


def _for_results_alone(q_BLHD: torch.Tensor, k_BLHD: torch.Tensor, v_BLHD: torch.Tensor) -> torch.Tensor:
    if not torch.compiler.is_compiling():
        return _fastest(q_BLHD, k_BLHD, v_BLHD)
    return _fastest_unseen(*(part.to(compute_dtype(part)) for part in (q_BLHD, k_BLHD, v_BLHD)))


def _fastest(q_BLHD: torch.Tensor, k_BLHD: torch.Tensor, v_BLHD: torch.Tensor) -> torch.Tensor:
    dtype = compute_dtype(q_BLHD)
    chosen = taken(q_BLHD.device, dtype, q_BLHD.shape[-1], learning=False)
    if chosen in PACKAGES:
        return attention(q_BLHD.to(dtype), k_BLHD.to(dtype), v_BLHD.to(dtype), backend=chosen)
    if chosen == "hopper" and is_worth_more(k_BLHD, v_BLHD) and not _learns(q_BLHD, k_BLHD, v_BLHD):
        return hopper_attention(q_BLHD.to(dtype), k_BLHD.to(dtype), v_BLHD.to(dtype))[0]
    order = sorted(_CUDA_KERNELS, key=lambda name: name != chosen)  # the others keep their order
    with sdpa_kernel([_CUDA_KERNELS[name] for name in order], set_priority=True):
        return _pytorch(q_BLHD, k_BLHD, v_BLHD)


def choose_kernel(
    device: torch.device, dtype: torch.dtype, head_dim: int, *, learning: bool, file: Path, clock: Clock
) -> Choice | None:
    """Make `auto` use the fastest kernel for such tokens on this GPU from now on. None if there is no choice.

    Candidates are PyTorch's kernels, our own for Hopper and, without gradients, those of installed packages that are
    as exact. Takes seconds once, on small cards half a minute; `file` remembers the result. `clock`: milliseconds that
    a run takes on the device.
    """
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return None
    own = torch.Generator(device).manual_seed(0)  # leaves the job's random numbers alone
    shape = 1, _TRIED_TOKENS, _TRIED_HEADS, head_dim
    try:
        qkv = [torch.randn(shape, generator=own, device=device, dtype=dtype) for _ in range(3)]
    except torch.OutOfMemoryError:
        return None
    if learning:
        kernels = trials(*qkv) if can_compute(qkv[0]) else {}
    else:
        packages = [name for name in _EXACT_PACKAGES if name in available_backends() and _can_import(name)]
        hopper = ["hopper"] if can_run(qkv[0].device, dtype, head_dim) else []
        names = ("cudnn", "flash", "efficient", *hopper, *packages)
        kernels = {name: partial(_run, name, *qkv) for name in names}
    gpu = torch.cuda.get_device_properties(device)
    tried = f"{_TRIED_TOKENS} tokens of {_TRIED_HEADS} heads by turns"
    machine = " ".join([f"{gpu.name} {gpu.major}.{gpu.minor}", *_versions(), tried])
    asked = Asked(device, machine, dtype, head_dim, learning)
    return choose(asked, kernels, file=file, clock=clock) if len(kernels) > 1 else None


def _can_import(name: str) -> bool:
    try:
        _find_kernel(name)
    except Exception:  # a package may fail in any way while it is imported
        return False
    return True


def _versions() -> list[str]:
    """Names and versions of the packages that may be tried, if they are imported."""
    modules = {name: sys.modules.get(PACKAGES[name][0].split(".")[0]) for name in _EXACT_PACKAGES}
    modules["triton"] = sys.modules.get("triton")  # compiles our own kernel
    return [f"{name} {getattr(module, '__version__', '?')}" for name, module in modules.items() if module is not None]


@torch.no_grad()
def _run(name: str, *qkv: torch.Tensor) -> torch.Tensor:
    if name in PACKAGES:
        return attention(*qkv, backend=name)
    if name == "hopper":
        return hopper_attention(*qkv)[0]
    with sdpa_kernel(_CUDA_KERNELS[name]):
        return _pytorch(*qkv)


@torch.library.custom_op("musubi::fastest_attention", mutates_args=())
def _fastest_unseen(q_BLHD: torch.Tensor, k_BLHD: torch.Tensor, v_BLHD: torch.Tensor) -> torch.Tensor:
    """`_fastest` without gradients, as an operator opaque to torch.compile: a graph that contains the choice of a
    kernel could not be cached, and would be compiled at every start."""
    return _fastest(q_BLHD, k_BLHD, v_BLHD).contiguous()


@_fastest_unseen.register_fake
def _(q_BLHD: torch.Tensor, k_BLHD: torch.Tensor, v_BLHD: torch.Tensor) -> torch.Tensor:
    return v_BLHD.new_empty((*q_BLHD.shape[:-1], v_BLHD.shape[-1]))


def _math(q_BLHD: torch.Tensor, k_BLHD: torch.Tensor, v_BLHD: torch.Tensor) -> torch.Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return _pytorch(q_BLHD, k_BLHD, v_BLHD)


def _imported(backend: str) -> Kernel:
    module, function, package = PACKAGES[backend]
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        way = f'Build it from its source with "{sys.executable}"' if backend == "flash3" else how_to_install(module)
        raise OptionError(
            f"The attention backend {backend} needs the package {package}, which cannot be imported: {error}",
            f"{way} (or use PyTorch's: --sdpa when training, --attn_mode torch otherwise)",
        ) from error


def _first_result(function: Callable) -> Kernel:
    """FlashAttention 3 returned (out, softmax statistics) in its first releases, and only out since then."""

    def kernel(q_BLHD: torch.Tensor, k_BLHD: torch.Tensor, v_BLHD: torch.Tensor) -> torch.Tensor:
        result = function(q_BLHD, k_BLHD, v_BLHD)
        return result[0] if isinstance(result, tuple) else result

    return kernel


def _sage(function: Callable) -> Kernel:
    def kernel(q_BLHD: torch.Tensor, k_BLHD: torch.Tensor, v_BLHD: torch.Tensor) -> torch.Tensor:
        return function(q_BLHD, k_BLHD, v_BLHD, tensor_layout="NHD", is_causal=False)

    return kernel


def _eight_bit(q_BLHD: torch.Tensor, k_BLHD: torch.Tensor, v_BLHD: torch.Tensor) -> torch.Tensor:
    if not is_worth_it(q_BLHD, k_BLHD):
        return _auto(q_BLHD, k_BLHD, v_BLHD)
    keep = is_kept(q_BLHD, k_BLHD)
    if keep or _learns(q_BLHD, k_BLHD, v_BLHD):
        return own_attention(q_BLHD, k_BLHD, v_BLHD, keep=keep, eight_bit=True)
    return eight_bit_attention(q_BLHD, k_BLHD, v_BLHD)


def _check_dtype(backend: str, q_BLHD: torch.Tensor) -> None:
    """OptionError in place of an error from inside a kernel."""
    if q_BLHD.dtype not in (torch.float16, torch.bfloat16):
        dtype = str(q_BLHD.dtype).removeprefix("torch.")
        raise OptionError(
            f"The attention backend {backend} works in fp16 or bf16, not in {dtype}.",
            "Run in bf16, or choose PyTorch's attention: --sdpa when training, --attn_mode torch when generating.",
        )


def _check_gradient(*parts: torch.Tensor) -> None:
    """OptionError if gradients are needed: they would be missing without a word."""
    if _learns(*parts):
        raise OptionError(
            "SageAttention has no backward pass, so it can generate but not train.",
            "Train with --sdpa or --flash_attn.",
        )
