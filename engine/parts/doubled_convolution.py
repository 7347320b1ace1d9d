"""A convolution of a clip that was doubled by repeating, computed from the clip before doubling.

Of three neighbours in a doubled row two are equal, so a kernel of three taps there is one of two taps here: an even
place 2i sees places i - 1 and i (with the sum of two taps), an odd one 2i + 1 sees i (with such a sum) and i + 1. If
height, width and frames are doubled, eight kernels of 2x2x2 taps replace one of 3x3x3, with 8/27 of the products, and
the doubled clip never exists. One convolution computes all eight, with eight times the output channels.

`doubled_convolution` is for HunyuanVideo's VAE, where edges are repeated and time is causal: the first frame is not
doubled, so frame t of the doubled clip is frame (t + 1) // 2 here, and frame 2j sees j - 1 and j like an even place.
`doubled_picture_convolution` is for Wan's.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from .causal_conv import empty_like_order

if TYPE_CHECKING:
    from .hunyuan_vae_network import Frames

_DOUBLED = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]], [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
"""[even or odd, tap here, tap there]."""


def doubled_weight(weight_OIFHW: Tensor, *, in_time: bool) -> Tensor:
    """The kernels of all kinds of places, stacked along the output channels: frames outermost, then height, width."""
    space = _DOUBLED.to(weight_OIFHW.device)
    time = space if in_time else torch.eye(weight_OIFHW.shape[2], device=space.device)[None]
    summed = torch.einsum("oixyz,aux,bvy,cwz->abcoiuvw", weight_OIFHW.float(), time, space, space)
    return summed.flatten(0, 3).to(weight_OIFHW.dtype).contiguous(memory_format=torch.channels_last_3d)


def doubled_convolution(
    frames: Frames, weight_OIFHW: Tensor, bias_C: Tensor, *, in_time: bool, elements: int
) -> Tensor:
    """The "same" convolution of the doubled clip, channels-last. `elements`: about how many numbers to make at once."""
    channels, count = len(weight_OIFHW), frames.count
    kernels = doubled_weight(weight_OIFHW, in_time=in_time)
    past = kernels.shape[2] - 1
    step = max(1, elements * weight_OIFHW.shape[1] // (frames.elements * len(kernels)))
    out_BCFHW: Tensor | None = None
    for start in range(0, count, step):
        end = min(start + step, count)
        found = functional.conv3d(frames.make(start - past, end, 1), kernels)
        height, width = found.shape[3] - 1, found.shape[4] - 1
        if out_BCFHW is None:
            size = (len(found), channels, 2 * count - 1 if in_time else count, 2 * height, 2 * width)
            out_BCFHW = empty_like_order(found, size)
        kinds = product(range(2 if in_time else 1), range(2), range(2))
        for place, (late, down, right) in enumerate(kinds):
            part = found[:, place * channels : (place + 1) * channels, :, down : down + height, right : right + width]
            target = out_BCFHW[:, :, :, down::2, right::2]
            if not in_time:
                target = target[:, :, start:end]
            elif late:  # frame 2j - 1; frame 0 has none before it
                part = part[:, :, 1:] if start == 0 else part
                target = target[:, :, max(2 * start - 1, 1) : 2 * end - 1 : 2]
            else:
                target = target[:, :, 2 * start : 2 * end - 1 : 2]
            torch.add(part, bias_C.view(-1, 1, 1, 1), out=target)
    assert out_BCFHW is not None
    return out_BCFHW


def doubled_picture_convolution(x_NCHW: Tensor, weight_OIHW: Tensor, bias_C: Tensor) -> Tensor:
    """The "same" convolution of doubled pictures, zero-padded; channels-last."""
    channels, (height, width) = len(weight_OIHW), x_NCHW.shape[2:]
    kernels = doubled_weight(weight_OIHW[:, :, None], in_time=False)[:, :, 0]
    found = functional.conv2d(x_NCHW, kernels.contiguous(memory_format=torch.channels_last), padding=1)
    size = (len(x_NCHW), channels, 2 * height, 2 * width)
    out_NCHW = torch.empty(size, dtype=found.dtype, device=found.device, memory_format=torch.channels_last)
    for place, (down, right) in enumerate(product(range(2), range(2))):
        part = found[:, place * channels : (place + 1) * channels, down : down + height, right : right + width]
        torch.add(part, bias_C.view(-1, 1, 1), out=out_NCHW[:, :, down::2, right::2])
    return out_NCHW
