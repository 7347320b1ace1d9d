"""Running a job within the memory that there is: `--memory auto`, and what to say when it was not enough.

Before the job: choose what makes it fit (fitting.py). After it ran out of the GPU's memory: everything is let go of,
and it goes on once with a smaller plan; a training from its last step, which its loop has saved (training/loop.py).
Without `--memory auto` the error names the options that would have helped.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable
from dataclasses import replace

import torch

from ..contract.errors import EngineError, OutOfMemoryError, as_failed
from ..contract.events import Control, Log, Say, Warning_
from ..contract.job import Job
from ..contract.options import Run
from ..memory.choosing import Limits
from ..memory.estimate import CONTEXT
from ..memory.machine import own_memory
from ..ops.device import choose_device, forget_peaks, free_memory, limit_memory
from ..parts.mapped_files import scratch_held
from .fitting import Plan, asked_size, limits_of, plan, smaller, wanted
from .plan import event_of, verdict
from .planned_weights import processes

Task = Callable[[Job, Say, Control], str]
TRIED = "Trying anyway."
GoOn = Callable[[Job], Job]
"""The job that goes on where one that broke off was."""


def within_memory(
    job: Job, say: Say, control: Control, task: Task, *, remember: Callable[[], GoOn] = lambda: lambda job: job,
    held: int | None = None,
) -> str:  # fmt: skip
    """Run `task` on a job as its options --memory and --vram say. `remember` is called before it begins.

    `held`: bytes of main memory in what earlier jobs of this process have left for this one; None without any.
    """
    device = gpu(job)
    if device is None:
        return task(job, say, control)
    found = fitted(job, device, say, held=held) if wanted(job) else None
    go_on = remember() if found is not None else None
    try:
        return task(job if found is None else found.job, say, control)
    except Exception as error:
        less = less_than(found, job) if found_no_room(error) else None
        if less is None:
            raise
        if go_on is None or not less.options or not less.fits or processes(job) > 1:  # the others cannot go on alone
            raise explained(error, less) from error
        told = as_failed(error)[0].message
    # here the exception is gone, and with it the frames that held tensors
    gc.collect()
    free_memory(device)
    forget_peaks(device)  # what is told of the job is what it took in the end
    say(Warning_(message=f"{told} Retrying with less: {less.flags}"))
    try:
        return task(go_on(less.job), say, control)
    except Exception as error:
        again = less_than(less, job) if found_no_room(error) else None
        if again is None:
            raise
        raise explained(error, again) from error


def gpu(job: Job) -> torch.device | None:
    """The GPU of this process; None where it computes on something else."""
    device = choose_device(job[Run].device)
    if device.type != "cuda":
        return None
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if device.index is None else device


def fitted(job: Job, device: torch.device, say: Say, *, held: int | None = None) -> Plan:
    """Choose, say what was chosen, and keep to --vram."""
    found = plan(job, limits=None if held is None else limits_at_start(job, held))
    say(event_of(found))
    say(Log(message=verdict(found)) if found.fits else Warning_(message=f"{verdict(found)} {TRIED}"))
    told = asked_size(job)
    if told is not None:
        limit_memory(device, told - CONTEXT)
    return found


def limits_at_start(job: Job, held: int) -> Limits:
    """What a process would find that begins with this job, so that it is planned alike after others."""
    limits, _ = limits_of(job)
    card, main = limits.card, limits.main
    if card is not None and asked_size(job) is None and torch.cuda.is_initialized():
        card += CONTEXT  # CUDA's own, which is planned for again
    disk = None if limits.disk is None else limits.disk + processes(job, here=True) * scratch_held()
    return Limits(card=card, main=None if main is None else main + held, disk=disk)


def limits_afterwards(job: Job) -> Limits:
    """What a process will find when this job, which has just failed, is over: what it has taken is free again."""
    limits = limits_at_start(job, processes(job, here=True) * own_memory())
    device = gpu(job)
    if limits.card is None or asked_size(job) is not None or device is None or not torch.cuda.is_initialized():
        return limits
    return replace(limits, card=limits.card + torch.cuda.memory_reserved(device))


def less_than(found: Plan | None, job: Job) -> Plan | None:
    """A smaller plan than the one that was not enough; None where none can be worked out.

    Its options are those to add to what failed: to the job that was planned, or to `job`, which nobody has planned.
    """
    with contextlib.suppress(EngineError):
        if found is not None:
            return smaller(found)
        first = plan(job, limits=limits_afterwards(job))
        less = smaller(first)
        return replace(less, options={**first.options, **less.options})
    return None


def found_no_room(error: BaseException) -> bool:
    """Whether the GPU's memory ran out; of main memory the error tells by itself."""
    return not isinstance(error, EngineError) and as_failed(error)[0].kind == "memory"


def explained(error: Exception, less: Plan) -> OutOfMemoryError:
    """The error with advice: what this job needs to fit, worked out."""
    failed, _ = as_failed(error)
    if not less.fits:
        hint = f"{verdict(less)} Make it smaller: resolution, frames, or batch_size."
    elif less.options:
        hint = f"Add {less.flags}. Or let --memory auto choose."
    else:
        hint = "It should have fitted: does another program use the GPU? " + failed.hint
    return OutOfMemoryError(failed.message, hint=hint)
