"""Convolutions give what PyTorch's give, and small ones on a CPU reach the fast kernel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from engine.ops.convolution import conv3d
from tests.kernels import pytorchs_kernels

needs_one_dnn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


def parts(frames: int = 4, size: int = 10) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(1, 8, frames, size, size), torch.randn(12, 8, 3, 3, 3), torch.randn(12)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("given", [{}, {"padding": (0, 1, 1)}, {"stride": (2, 2, 2), "padding": (1, 1, 1)}])
def test_it_is_pytorchs(given: dict[str, tuple[int, int, int]], biased: bool) -> None:
    x, weight, bias = parts()
    bias_C = bias if biased else None
    with torch.no_grad():
        assert torch.allclose(conv3d(x, weight, bias_C, **given), F.conv3d(x, weight, bias_C, **given), atol=1e-4)
        channels_last = x.contiguous(memory_format=torch.channels_last_3d)
        assert torch.allclose(
            conv3d(channels_last, weight, bias_C, **given), F.conv3d(x, weight, bias_C, **given), atol=1e-4
        )


@needs_one_dnn
@pytest.mark.parametrize("channels", [8, 24, 64])
def test_it_is_near_to_exact_numbers(channels: int) -> None:
    """Within 1e-6 of their size: 4e-7 with AVX-512 and 8e-7 with AVX2 were seen, PyTorch's own kernels 3e-7."""
    x, weight = torch.randn(1, channels, 5, 20, 20), torch.randn(channels, channels, 3, 3, 3)
    exact = F.conv3d(x.double(), weight.double())
    with torch.no_grad():
        ours = conv3d(x, weight)
        with pytorchs_kernels():
            theirs = conv3d(x, weight)
    assert not ours.equal(theirs), "both went the same way"
    for got in (ours, theirs):
        assert (got - exact).square().mean().sqrt() <= 1e-6 * exact.square().mean().sqrt()


def test_gradients_and_other_precisions_go_pytorchs_way() -> None:
    x, weight, bias = parts()
    weight.requires_grad_()
    assert conv3d(x, weight, bias).equal(F.conv3d(x, weight, bias))
    half = [part.detach().bfloat16() for part in (x, weight, bias)]
    assert conv3d(*half).equal(F.conv3d(*half))


@needs_one_dnn
def test_small_ones_take_the_fast_kernel() -> None:
    x, weight, bias = parts()
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as seen:
        conv3d(x, weight, bias)
    names = {event.key for event in seen.key_averages()}
    assert "aten::mkldnn_convolution" in names and "aten::slow_conv3d_forward" not in names
