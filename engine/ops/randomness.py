"""Drawing random numbers without a trace."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def undisturbed_randomness(device: torch.device) -> Iterator[None]:
    """Inside, anything may draw random numbers; afterwards Python's, numpy's and torch's sources (the CPU's and
    `device`'s) go on as if nothing had been drawn, even after an error."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
