"""`--optimized`: what makes generating faster on a GPU and rounds more, as far as this machine has it.

What the job sets by itself stays. Imports no torch until attention is to be chosen: the planner reads `quick_weights`.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from ..contract.events import Log, Say, Warning_
from ..contract.job import Job, changed
from ..contract.options import AttentionMode, GenerationMemory, GenerationPrecision, Run
from .planned_weights import has_triton

if TYPE_CHECKING:
    import torch


def optimized(job: Job, say: Say) -> Job:
    """The job with all that `--optimized` stands for here, which is told; the job itself without that option."""
    if not job[GenerationMemory].optimized:
        return job
    from ..ops.device import choose_device

    device = choose_device(job[Run].device)
    if device.type != "cuda":
        say(Warning_(message=f"--optimized changes nothing on {device.type}: it is for GPUs."))
        return changed(job, {"optimized": False})
    job = quick_weights(job)
    backend = job[AttentionMode].attn_mode
    if backend == "auto":
        job = changed(job, {"attn_mode": _quick_attention(device)})
    memory, precision = job[GenerationMemory], job[GenerationPrecision]
    taken = [
        f"--{precision.weight_format}",
        *(["--compile"] if memory.compile else []),
        "--fp16_accumulation",
        f"--attn_mode {job[AttentionMode].attn_mode}",
    ]
    say(Log(message=f"--optimized: {' '.join(taken)}."))
    if not memory.compile:
        say(Warning_(message="--optimized compiles nothing: Triton is not installed."))
    return job


def quick_weights(job: Job) -> Job:
    """The job with what of `--optimized` the memory planner knows: fp8 weights and compiled blocks."""
    if GenerationMemory not in job or not job[GenerationMemory].optimized:
        return job
    values: dict[str, Any] = {"fp16_accumulation": True, "compile": job[GenerationMemory].compile or has_triton()}
    if job[GenerationPrecision].weight_format == "stored":
        values["fp8_scaled"] = True
    return changed(job, values)


def _quick_attention(device: torch.device) -> str:
    """Attention in 8 bits on Hopper, where it was measured; elsewhere SageAttention before it."""
    import torch

    from ..ops.eight_bit_attention import missing

    eight_bit = missing(device) is None
    if eight_bit and torch.cuda.get_device_capability(device)[0] == 9:
        return "8bit"
    if importlib.util.find_spec("sageattention") is not None:
        return "sageattn"
    return "8bit" if eight_bit else "auto"
