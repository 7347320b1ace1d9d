"""A causal convolution over chunks is the convolution over the whole, and remembers no more than it needs."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from engine.parts.causal_conv import CausalConv3d, FrameMemory, batch_to_frames, frames_to_batch


@pytest.fixture
def conv():
    torch.manual_seed(0)
    return CausalConv3d(3, 5).requires_grad_(False)


@pytest.mark.parametrize("on_cpu", [False, True])
@pytest.mark.parametrize("lengths", [(7,), (1, 1, 1, 1, 3), (1, 2, 4), (6, 1)])
def test_chunks_give_the_whole(conv, lengths, on_cpu):
    x = torch.randn(2, 3, 7, 6, 5)
    padded = functional.pad(x, (1, 1, 1, 1, 2, 0))
    wanted = functional.conv3d(padded, conv.weight, conv.bias)
    memory = FrameMemory(on_cpu=on_cpu)
    found = torch.cat([conv(chunk, memory) for chunk in x.split(lengths, dim=2)], dim=2)
    assert (found - wanted).abs().max() <= 1e-5


def test_two_videos_do_not_meet(conv):
    first, second = torch.randn(2, 1, 3, 2, 4, 4).unbind()
    one, other = FrameMemory(), FrameMemory()
    conv(first, one)
    conv(second, other)
    assert torch.equal(one.recall(conv, device=first.device), first)
    assert torch.equal(other.recall(conv, device=first.device), second)


def test_only_the_last_frames_are_kept(conv):
    memory = FrameMemory()
    conv(torch.randn(1, 3, 50, 4, 4), memory)
    kept = memory.recall(conv, device=torch.device("cpu"))
    assert kept.shape[2] == 2 and kept.untyped_storage().nbytes() == kept.numel() * 4


def test_pointwise_convolutions_keep_nothing():
    layer, memory = CausalConv3d(2, 2, (1, 1, 1)), FrameMemory()
    layer(torch.randn(1, 2, 3, 4, 4), memory)
    assert memory.recall(layer, device=torch.device("cpu")) is None


def test_first_visit_is_told_once(conv):
    memory = FrameMemory()
    assert [memory.first_visit(conv), memory.first_visit(conv)] == [True, False]


def test_frames_along_the_batch_and_back():
    x = torch.randn(2, 3, 4, 5, 6)
    rows = frames_to_batch(x)
    assert torch.equal(rows[5], x[1, :, 1])
    assert torch.equal(batch_to_frames(rows, batch=2), x)
