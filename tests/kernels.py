"""Which kernels compute, where a test compares to the last digits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def pytorchs_kernels() -> Iterator[None]:
    """Convolutions on a CPU by PyTorch's own kernels, as references and diffusers have them for small clips.

    oneDNN adds up in another order; tests/ops/test_convolution.py compares it with exact numbers.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Intel GPUs, for whatever flag is set
        with torch.backends.mkldnn.flags(enabled=False):
            yield
