"""`--optimized`: what makes generating faster or smaller on a GPU and rounds more, as far as this machine has it.

What the job sets by itself stays. First, before memory is planned, weights in fp8, compiled blocks and attention in
8 bits (`optimized`); then, where torch may look at the GPU, what of these it cannot do is taken back (`possible`).
SageAttention is left out: it needs half precision, and its package often cannot be imported where it is installed.
"""

from __future__ import annotations

from typing import Any

from ..contract.events import Log, Say, Warning_
from ..contract.job import Job, changed
from ..contract.options import AttentionMode, GenerationMemory, GenerationPrecision, Run
from .planned_weights import has_triton


def optimized(job: Job) -> Job:
    """The job with all that `--optimized` stands for; the job itself without that option. Asks no GPU."""
    if GenerationMemory not in job or not job[GenerationMemory].optimized:
        return job
    values: dict[str, Any] = {"fp16_accumulation": True, "compile": job[GenerationMemory].compile or has_triton()}
    if job[GenerationPrecision].weight_format == "stored":
        values["fp8_scaled"] = True
    if job[AttentionMode].attn_mode == "auto":
        values["attn_mode"] = "8bit"
    return changed(job, values)


def possible(asked: Job, job: Job, say: Say) -> Job:
    """`job`, which is `optimized(asked)`, with what this machine can do of it, which is told."""
    if not asked[GenerationMemory].optimized:
        return job
    import torch

    from ..ops.device import choose_device
    from ..ops.eight_bit_attention import FIRST_CAPABILITY, missing

    device = choose_device(job[Run].device)
    if device.type != "cuda":
        say(Warning_(message=f"--optimized changes nothing on {device.type}: it is for GPUs."))
        return changed(asked, {"optimized": False})
    why = missing(device)
    if why is not None and asked[AttentionMode].attn_mode == "auto":
        job = changed(job, {"attn_mode": "auto"})
    if why is not None and has_triton() and torch.cuda.get_device_capability(device) >= FIRST_CAPABILITY:
        say(Warning_(message=f"--optimized compiles nothing: {why}"))  # what fails here would fail in every block
        job = changed(job, {"compile": asked[GenerationMemory].compile})
    elif not has_triton():
        say(Warning_(message="--optimized compiles nothing: Triton is not installed."))
    compiled = ["--compile"] if job[GenerationMemory].compile else []
    words = [f"--{job[GenerationPrecision].weight_format}", *compiled, f"--attn_mode {job[AttentionMode].attn_mode}"]
    say(Log(message=f"--optimized: {' '.join(words)} --fp16_accumulation."))
    return job
