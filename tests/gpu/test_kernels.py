"""Our Triton kernels against the formulas that they stand for."""

from __future__ import annotations

import pytest
import torch

from engine.ops import norm_silu, quantize_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]


@pytest.mark.parametrize(("rows", "width"), [(1, 16), (100, 5120), (333, 13824), (7, 48), (5, 65536)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("factored", [False, True])
def test_quantized_rows_are_those_of_the_formula(rows, width, dtype, factored):
    torch.manual_seed(0)
    values = (torch.randn(rows, width, device="cuda") * torch.rand(rows, 1, device="cuda") * 30).to(dtype)
    factors = torch.rand(width, device="cuda") if factored else None
    codes, scale = quantize_rows.quantize_rows(values, factors)
    expected_codes, expected_scale = quantize_rows.formula(values, factors)
    torch.testing.assert_close(scale, expected_scale, rtol=1e-6, atol=0)
    near = codes.float() - expected_codes.float()
    assert (near == 0).float().mean() > 0.99, "more than rounding ties differ"
    assert (near.abs() <= expected_codes.float().abs() / 8 + 2**-9).all(), "a code is off by more than one step"


def test_rows_of_zeros_become_zeros():
    codes, scale = quantize_rows.quantize_rows(torch.zeros(3, 64, device="cuda", dtype=torch.bfloat16))
    assert (codes.float() == 0).all() and (scale == quantize_rows.SMALLEST_SCALE).all()


def test_rows_of_a_part_of_a_matrix():
    values = torch.randn(64, 96, device="cuda").bfloat16()[:, 32:64]
    codes, _ = quantize_rows.quantize_rows(values)
    torch.testing.assert_close(codes.float(), quantize_rows.formula(values)[0].float(), rtol=0.13, atol=1)


@pytest.mark.parametrize("channels", [96, 192, 384, 16])
@pytest.mark.parametrize("batch", [1, 2])
def test_norm_and_silu_are_the_formula(channels, batch):
    torch.manual_seed(0)
    x = torch.randn(batch, channels, 3, 10, 14, device="cuda").to(memory_format=torch.channels_last_3d).bfloat16()
    gain = torch.rand(channels, device="cuda").bfloat16()
    room = torch.full((batch, channels, 5, 10, 14), torch.nan, device="cuda", dtype=torch.bfloat16)
    room = room.to(memory_format=torch.channels_last_3d)
    assert norm_silu.is_channels_last(x) and norm_silu._kernel(0) is not None
    norm_silu.norm_silu(x, gain, out_BCFHW=room[:, :, 2:])
    torch.testing.assert_close(room[:, :, 2:].float(), norm_silu.formula(x.float(), gain.float()), rtol=8e-3, atol=4e-3)
    assert room[:, :, :2].isnan().all(), "the kernel wrote outside its frames"
