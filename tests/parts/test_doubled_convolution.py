"""A convolution of a doubled clip, computed from the clip before it was doubled."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from engine.ops.norm_pad import padded
from engine.parts.doubled_convolution import doubled_convolution, doubled_picture_convolution, doubled_weight
from engine.parts.hunyuan_vae_network import Frames


def directly(x, weight, bias, *, in_time):
    """Repeat every pixel, and every frame but the first; repeat the edges; convolve."""
    large = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
    if in_time:
        large = torch.cat([large[:, :, :1], large[:, :, 1:].repeat_interleave(2, 2)], dim=2)
    return functional.conv3d(functional.pad(large, (1, 1, 1, 1, 2, 0), mode="replicate"), weight, bias)


@pytest.mark.parametrize("in_time", [False, True])
@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("elements", [1, 1 << 30])
def test_it_is_the_convolution_of_the_doubled_clip(in_time, frames, elements):
    torch.manual_seed(0)
    x = torch.randn(2, 4, frames, 3, 5, dtype=torch.float64)
    weight, bias = torch.randn(6, 4, 3, 3, 3, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    seen = []

    def make(start, end, edge):
        seen.append(end - start)
        return padded(x, start, end, edge=edge)

    asked = Frames(frames, x.numel() // frames, make)
    found = doubled_convolution(asked, weight, bias, in_time=in_time, elements=elements)
    wanted = directly(x, weight, bias, in_time=in_time)
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)  # taps are summed in float32
    assert len(seen) == (frames if elements == 1 else 1)


@pytest.mark.parametrize(("in_time", "kernel", "kinds"), [(False, (3, 2, 2), 4), (True, (2, 2, 2), 8)])
def test_it_multiplies_less(in_time, kernel, kinds):
    """8 taps of 27 for each place of the doubled clip, 12 where frames are not doubled; none is lost."""
    weight = torch.randn(6, 4, 3, 3, 3)
    found = doubled_weight(weight, in_time=in_time)
    assert found.shape == (kinds * 6, 4, *kernel)
    torch.testing.assert_close(found.sum((2, 3, 4)), weight.sum((2, 3, 4)).repeat(kinds, 1))


def test_a_picture_with_black_around_it_is_convolved_alike():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 4, 5, 7), torch.randn(6, 4, 3, 3), torch.randn(6)
    wanted = functional.conv2d(functional.interpolate(x, scale_factor=2, mode="nearest-exact"), weight, bias, padding=1)
    found = doubled_picture_convolution(x, weight, bias)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)
