"""3D convolutions, by the fast kernels of whatever computes.

PyTorch leaves small ones on a CPU (20,480 values or fewer in batch, channels, frames and rows) to a kernel of its own
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
    """What `torch.nn.functional.conv3d` gives, to float32's rounding; `weight` is [C out, C, frames, height, width]."""
    if _is_for_one_dnn(x_BCFHW):
        return torch.mkldnn_convolution(x_BCFHW, weight, bias_C, padding, stride, _ONE_EACH, 1)
    return functional.conv3d(x_BCFHW, weight, bias_C, stride, padding)


def _is_for_one_dnn(x_BCFHW: Tensor) -> bool:
    """oneDNN takes no gradients in this way, and a compiler chooses for itself."""
    return (
        x_BCFHW.device.type == "cpu"
        and x_BCFHW.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
    )
