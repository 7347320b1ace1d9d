"""`serve`: what one job of a process leaves for the next, and that it leaves nothing else.

The conversation, and the jobs themselves, are the entrance's (engine/serving.py): a task does not start tasks.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import signal
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ..ops import attention_choice
from ..ops.device import lift_limits
from .kept import Kept

__all__ = ["Kept", "like_a_process_of_its_own"]


@contextlib.contextmanager
def like_a_process_of_its_own() -> Iterator[None]:
    """Inside, a job may change whatever belongs to the process; afterwards that is as it was, and memory is free.

    Seeds that a new process draws from the system are drawn anew.
    """
    folder, variables = os.getcwd(), dict(os.environ)
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    signals = {number: signal.getsignal(number) for number in signal.valid_signals()}
    switches = _switches()
    drawn = torch.get_rng_state()
    try:
        yield
    finally:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(variables)
        root.setLevel(level)
        root.handlers[:] = handlers
        for number, handler in signals.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        _set(switches)
        attention_choice.forget()
        random.seed()
        np.random.seed()
        torch.set_rng_state(drawn)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(torch.initial_seed())
        _give_memory_back()


def _switches() -> dict[str, Any]:
    """torch's, that hold for the whole process."""
    dynamo = sys.modules.get("torch._dynamo")
    return {
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "fp16_accumulation": torch.backends.cuda.matmul.allow_fp16_accumulation,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "graphs": None if dynamo is None else dynamo.config.cache_size_limit,
    }


def _set(switches: dict[str, Any]) -> None:
    torch.set_default_dtype(switches["dtype"])
    if torch.get_num_threads() != switches["threads"]:
        torch.set_num_threads(switches["threads"])
    torch.set_grad_enabled(switches["gradients"])
    torch.use_deterministic_algorithms(switches["deterministic"])
    torch.backends.cuda.matmul.allow_tf32 = switches["tf32"]
    torch.backends.cuda.matmul.allow_fp16_accumulation = switches["fp16_accumulation"]
    torch.backends.cudnn.allow_tf32 = switches["cudnn_tf32"]
    torch.backends.cudnn.benchmark = switches["cudnn_benchmark"]
    if switches["graphs"] is not None:
        sys.modules["torch._dynamo"].config.cache_size_limit = switches["graphs"]


def _give_memory_back() -> None:
    gc.collect()
    lift_limits()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
