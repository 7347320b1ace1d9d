"""Which kernels compute a job's attention: tried out on this GPU, remembered beside the engine's environment, told."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import nn

from ..bench.stopwatch import repeated
from ..contract.events import Log, Say
from ..contract.home import engine_home
from ..ops.attention import check_backend, choose_kernel

RUNS = 5
REMEMBERED = "attention.json"
NAMES = {
    "cudnn": "cuDNN",
    "flash": "PyTorch's FlashAttention",
    "efficient": "PyTorch's memory-efficient attention",
    "hopper": "our kernel for Hopper",
    "flash2": "flash-attn 2",
    "flash3": "flash-attn 3",
    "xformers": "xformers",
}


def check_attention(backend: str, device: torch.device, *, learning: bool, say: Say) -> None:
    """OptionError if this attention cannot be used here; for use before anything is loaded."""
    if backend == "8bit" and device.type == "cuda":
        say(Log(message="Trying out attention in 8 bits (the first time, its kernels are compiled)."))
    check_backend(backend, device, learning=learning)


def settle_attention(
    dit: nn.Module, device: torch.device, *, dtype: torch.dtype, backend: str, learning: bool, say: Say
) -> None:
    """Choose what "auto" is, which "8bit" falls back to for short texts and their gradients, and tell what is taken. On
    a CPU there is no choice; without a home of the engine, where it would be remembered, the usual kernel stays.

    `dit` may be without weights. `dtype`: what attention is computed in. `learning`: gradients will be computed.
    """
    if device.type != "cuda":
        return
    if backend != "auto":
        say(Log(message=f"Attention: {backend}."))
    home = engine_home()
    if backend not in ("auto", "8bit") or home is None:
        return
    remembered = {"file": home / REMEMBERED, "clock": partial(milliseconds, device=device)}
    for gradients in (False, True) if learning else (False,):
        choice = choose_kernel(device, dtype, dit.config.head_dim, learning=gradients, **remembered)
        if choice is not None:
            what = "Attention to short texts" if backend == "8bit" else "Attention"
            what += " and its gradients" if gradients else ""
            others = sorted((time, name) for name, time in choice.milliseconds.items() if name != choice.name)
            times = ", ".join(f"{NAMES[name]} {time:.2f}" for time, name in others)
            when = "as tried here before" if choice.remembered else "as just tried"
            own = choice.milliseconds[choice.name]
            say(Log(message=f"{what}: {NAMES[choice.name]}, {when} ({own:.2f} ms; {times})."))


def milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """The median of some runs, after warming up."""
    return 1000 * median(repeated(run, device, times=RUNS))
