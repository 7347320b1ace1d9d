"""Networks of causal convolutions give the same numbers in either order of dimensions."""

from __future__ import annotations

import pytest
import torch

from engine.ops.norm_silu import formula, is_channels_last, norm_silu
from engine.parts.causal_conv import CausalConv3d, FrameMemory, empty_like_order, fill_up_channels, lay_channels_last


@pytest.mark.parametrize("batch", [1, 2])
def test_a_convolution_keeps_the_order_from_chunk_to_chunk(batch):
    torch.manual_seed(0)
    first, last = CausalConv3d(4, 6), CausalConv3d(4, 6)
    last.load_state_dict(first.state_dict())
    lay_channels_last(last)
    clip = torch.randn(batch, 4, 7, 5, 6)
    memories = FrameMemory(), FrameMemory()
    for chunk in clip.split([1, 3, 3], dim=2):
        expected = first(chunk, memories[0])
        found = last(chunk.contiguous(memory_format=torch.channels_last_3d), memories[1])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert memories[1].recall(last, device=chunk.device).stride(1) == 1


def test_an_entrance_writes_into_the_joined_clip():
    torch.manual_seed(0)
    conv, gain, clip = CausalConv3d(4, 6), torch.rand(4), torch.randn(1, 4, 3, 5, 6)
    entered = conv(clip, FrameMemory(), entrance=lambda x, out: norm_silu(x, gain, out_BCFHW=out))
    torch.testing.assert_close(entered, conv(formula(clip, gain), FrameMemory()), rtol=0, atol=0)


def test_the_bias_may_be_left_to_who_reads_the_result():
    torch.manual_seed(0)
    conv, gain, clip = CausalConv3d(4, 4), torch.rand(4), torch.randn(2, 4, 3, 5, 6)
    left = norm_silu(conv(clip, FrameMemory(), with_bias=False), gain, offset_C=conv.bias)
    torch.testing.assert_close(left, norm_silu(conv(clip, FrameMemory()), gain), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("channels", "room"), [(3, 16), (16, 16), (48, 48), (96, 128), (192, 192)])
def test_weights_get_as_many_channels_as_a_fast_kernel_takes(channels, room):
    conv = CausalConv3d(channels, 4, (1, 1, 1))
    before = conv.weight.detach().clone()
    lay_channels_last(conv)
    assert conv.weight.shape == before.shape, "a network that learns keeps the weights of its file"
    fill_up_channels(conv)
    assert conv.weight.shape[1] == room and torch.equal(conv.weight[:, :channels], before)
    assert not conv.weight[:, channels:].any()


def test_room_is_made_in_the_order_of_its_example():
    clip = torch.randn(2, 4, 3, 5, 6)
    assert not is_channels_last(empty_like_order(clip, (2, 8, 5, 5, 6)))
    assert is_channels_last(empty_like_order(clip.to(memory_format=torch.channels_last_3d), (2, 8, 5, 5, 6)))
