"""3D convolutions by the fastest kernels of each device.

On a CPU PyTorch computes small ones (up to 20,480 values in batch, channels, frames and rows) with a kernel of its own
that takes up to seven times as long as oneDNN's, which it uses for all others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

_ONE_EACH = (1, 1, 1)


def conv3d(
    x_BCFHW: Tensor,
    weight: Tensor,
    bias_C: Tensor | None = None,
    *,
    stride: Sequence[int] = _ONE_EACH,
    padding: Sequence[int] = (0, 0, 0),
) -> Tensor:
    """As `torch.nn.functional.conv3d`, up to float32's rounding; `weight` is [C out, C, frames, height, width]."""
    if _is_for_one_dnn(x_BCFHW):
        return torch.mkldnn_convolution(x_BCFHW, weight, bias_C, padding, stride, _ONE_EACH, 1)
    return functional.conv3d(x_BCFHW, weight, bias_C, stride, padding)


def _is_for_one_dnn(x_BCFHW: Tensor) -> bool:
    """Called in this way oneDNN has no gradients; and a compiler chooses for itself."""
    return (
        x_BCFHW.device.type == "cpu"
        and x_BCFHW.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
    )
