"""What stands between a VAE's convolutions, in the formulas that kernels are tested with (tests/gpu)."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from engine.ops import norm_pad


@pytest.fixture
def clip():
    return torch.randn(2, 12, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1


@pytest.mark.parametrize("with_offset", [False, True])
def test_the_affine_is_a_group_norm(clip, with_offset):
    weight, bias = torch.rand(12), torch.randn(12)
    offset = torch.randn(12) * 2 if with_offset else None
    scale, shift = norm_pad.group_norm_affine(clip, weight, bias, groups=4, eps=1e-6, offset_C=offset)
    given = clip if offset is None else clip + offset.view(-1, 1, 1, 1)
    wanted = functional.group_norm(given, 4, weight, bias, eps=1e-6)
    found = clip * scale[..., None, None, None] + shift[..., None, None, None]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("start", "end", "edge"), [(-2, 3, 1), (1, 2, 0), (-1, 2, 1)])
def test_edges_are_repeated(clip, start, end, edge):
    found = norm_pad.padded(clip, start, end, edge=edge)
    assert found.shape == (2, 12, end - start, 4 + 2 * edge, 5 + 2 * edge)
    lines, columns = (torch.arange(-edge, size + edge).clamp(0, size - 1) for size in (4, 5))
    frames = torch.arange(start, end).clamp_min(0)
    assert torch.equal(found, clip[:, :, frames][:, :, :, lines][..., columns])


def test_an_affine_is_applied_and_activated(clip):
    scale, shift = torch.rand(2, 12), torch.randn(2, 12)
    found = norm_pad.padded(clip, 0, 3, edge=0, affine=(scale, shift))
    wanted = functional.silu(clip * scale[..., None, None, None] + shift[..., None, None, None])
    torch.testing.assert_close(found, wanted)


def test_a_sum_is_rounded_once():
    ones = torch.ones(1, 2, 1, 1, 1, dtype=torch.bfloat16)
    found = norm_pad.add_(ones.clone(), ones * 2**-8, torch.full((2,), 2**-8))
    assert (found.float() == 1 + 2**-7).all(), "each addend alone is too small for bfloat16"


def test_features_on_a_cpu_are_not_for_kernels(clip):
    with torch.no_grad():
        assert not norm_pad.can_fuse(clip.contiguous(memory_format=torch.channels_last_3d))
