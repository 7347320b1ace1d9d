"""Our Triton kernels against the formulas that they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from engine.memory.fp8 import Fp8Linear, has_fp8_products
from engine.ops import eight_bit_attention, kept_attention, norm_pad, norm_silu, quantize_rows
from engine.ops.activated import activated
from engine.ops.attention import attention

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


@pytest.mark.parametrize("width", [8960, 12288, 13824, 48, 333, 4999, 65536])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_quantized_gelus_of_rows_are_those_of_the_formula(width, dtype):
    """But for the last bit of some: a row's scale may differ by it too."""
    torch.manual_seed(0)
    values = (torch.randn(200, width, device="cuda") * torch.rand(200, 1, device="cuda") * 10).to(dtype)
    codes, scale = quantize_rows.quantize_rows(values, None, True)
    expected_codes, expected_scale = quantize_rows.formula(values, None, True)
    torch.testing.assert_close(scale, expected_scale, rtol=2**-7, atol=1e-9)
    near = codes.float() - expected_codes.float()
    assert (near == 0).float().mean() > 0.98, "more than rounding ties differ"
    assert (near.abs() <= expected_codes.float().abs() / 8 + 2**-9).all(), "a code is off by more than one step"


def test_gelus_of_numbers_far_out():
    far = torch.tensor([[0.0, -0.0, 1e4, -1e4, 3e38, -3e38, 40.0, -40.0] * 2], device="cuda").bfloat16()
    for rows in (far[:, 6:8], far[:, :4], far):
        codes, scale = quantize_rows.quantize_rows(rows, None, True)
        expected_codes, expected_scale = quantize_rows.formula(rows, None, True)
        assert torch.equal(codes.float(), expected_codes.float())
        torch.testing.assert_close(scale, expected_scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_layer_does_the_gelu_before_it_and_nobody_writes_it(compiled):
    if not has_fp8_products(torch.device("cuda")):
        pytest.skip("this GPU has no fp8 products")
    torch.manual_seed(0)
    x = torch.randn(1, 16384, 256, device="cuda").bfloat16()
    wide = torch.randn(13824, 256, device="cuda").bfloat16()
    last = Fp8Linear.from_linear(nn.Linear(13824, 512, device="cuda", dtype=torch.bfloat16), "channel")
    gelu = nn.GELU(approximate="tanh")

    def product(x):
        layer, left = activated(last, gelu, functional.linear(x, wide))
        return layer(left)

    measured = torch.compile(product, fullgraph=True) if compiled else product
    with torch.no_grad():
        expected = last(gelu(functional.linear(x, wide)))
        measured(x)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found = measured(x)
    assert torch.cuda.max_memory_allocated() - before < 3.5 * 16384 * 13824, "the activated values were written"
    assert (found - expected).float().norm() / expected.float().norm() < 2e-3


def test_rows_of_zeros_become_zeros():
    for gelu in (False, True):
        codes, scale = quantize_rows.quantize_rows(torch.zeros(3, 64, device="cuda", dtype=torch.bfloat16), None, gelu)
        assert (codes.float() == 0).all() and (scale == quantize_rows.SMALLEST_SCALE).all()


def test_rows_of_a_part_of_a_matrix():
    values = torch.randn(64, 96, device="cuda").bfloat16()[:, 32:64]
    codes, _ = quantize_rows.quantize_rows(values)
    torch.testing.assert_close(codes.float(), quantize_rows.formula(values)[0].float(), rtol=0.13, atol=1)


def test_a_compiled_function_takes_the_kernel_where_there_are_factors():
    torch.manual_seed(0)
    values, factors = torch.randn(3333, 5120, device="cuda").bfloat16(), torch.rand(5120, device="cuda")

    def halved(values):
        return quantize_rows.quantize_rows(values * 0.5, factors)

    torch.cuda.synchronize()
    compiled = torch.compile(halved)
    compiled(values)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    codes, scale = compiled(values)
    assert torch.cuda.max_memory_allocated() - before < 3.5 * values.numel(), "the product was written in float32"
    wanted_codes, wanted_scale = halved(values)
    assert torch.equal(codes.view(torch.uint8), wanted_codes.view(torch.uint8)) and torch.equal(scale, wanted_scale)


def test_a_compiled_function_takes_the_kernel_for_long_rows():
    torch.manual_seed(0)
    values = torch.randn(333, quantize_rows.LONGEST_FUSED_ROW + 16, device="cuda").bfloat16()

    def halved(values):
        return quantize_rows.quantize_rows(values * 0.5)

    for ours, theirs in zip(torch.compile(halved)(values), halved(values), strict=True):
        assert torch.equal(ours.float(), theirs.float())


def test_compiled_attention_without_gradients_is_the_same_and_its_graph_is_found_again(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, length, 12, 128, device="cuda")[:, :, ::3].bfloat16() for length in (1000, 512, 512))
    for what in ("saved", "hit"):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        with torch.no_grad():
            assert torch.equal(torch.compile(attention, fullgraph=True)(q, k, v), attention(q, k, v))
        assert torch._dynamo.utils.counters["aot_autograd"][f"autograd_cache_{what}"] == 1


@pytest.mark.parametrize("channels", [96, 192, 384, 16])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("with_offset", [False, True])
def test_norm_and_silu_are_the_formula(channels, batch, with_offset):
    torch.manual_seed(0)
    x = torch.randn(batch, channels, 3, 10, 14, device="cuda").to(memory_format=torch.channels_last_3d).bfloat16()
    gain = torch.rand(channels, device="cuda").bfloat16()
    offset = torch.randn(channels, device="cuda").bfloat16() if with_offset else None
    room = torch.full((batch, channels + 32, 5, 10, 14), torch.nan, device="cuda", dtype=torch.bfloat16)
    room = room.to(memory_format=torch.channels_last_3d)
    assert norm_silu.is_channels_last(x) and norm_silu._kernel(0, torch.bfloat16) is not None
    found = norm_silu.norm_silu(x, gain, offset_C=offset, out_BCFHW=room[:, :channels, 2:])
    wanted = norm_silu.formula(x.float(), gain.float(), None if offset is None else offset.float())
    torch.testing.assert_close(found.float(), wanted, rtol=8e-3, atol=4e-3)
    assert room[:, :, :2].isnan().all() and room[:, channels:].isnan().all(), "the kernel wrote beside its place"


@pytest.mark.parametrize(("channels", "groups"), [(128, 32), (512, 32), (24, 4)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("with_offset", [False, True])
def test_what_stands_before_a_convolution_is_its_formula(channels, groups, dtype, with_offset):
    torch.manual_seed(0)
    x = (torch.randn(2, channels, 5, 33, 47, device="cuda") * 3 + 2).to(dtype)
    x = x.to(memory_format=torch.channels_last_3d)
    weight, bias, offset = (torch.randn(channels, device="cuda").to(dtype) for _ in range(3))
    offset = offset if with_offset else None
    with torch.no_grad():
        assert norm_pad.can_fuse(x)
        affine = norm_pad.group_norm_affine(x, weight, bias, groups=groups, eps=1e-6, offset_C=offset)
        wanted = norm_pad.affine_formula(x, weight, bias, groups=groups, eps=1e-6, offset_C=offset)
        for found, formula in zip(affine, wanted, strict=True):
            torch.testing.assert_close(found, formula, rtol=1e-4, atol=1e-4)
        for start, end, edge, own in ((-2, 5, 1, affine), (1, 3, 0, None)):
            found = norm_pad.padded(x, start, end, edge=edge, affine=own)
            formula = norm_pad.padded_formula(x, start, end, edge=edge, affine=own)
            assert norm_silu.is_channels_last(found)
            torch.testing.assert_close(found, formula, rtol=8e-3, atol=4e-3)
        summed = norm_pad.add_(x.clone(), x, weight)
        torch.testing.assert_close(
            summed.float(), 2 * x.float() + weight.float().view(-1, 1, 1, 1), rtol=8e-3, atol=4e-3
        )


@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_statistics_of_many_pixels_lose_no_digits(mean):
    torch.manual_seed(0)
    x = torch.randn(1, 128, 9, 128, 128, device="cuda").add_(mean).contiguous(memory_format=torch.channels_last_3d)
    ones, zeros = torch.ones(128, device="cuda"), torch.zeros(128, device="cuda")
    with torch.no_grad():
        scale_BC, shift_BC = norm_pad.group_norm_affine(x, ones, zeros, groups=32, eps=1e-6)
    wide_GL = x.double().reshape(32, -1)
    wanted = wide_GL.var(1, correction=0).add(1e-6).rsqrt()
    torch.testing.assert_close(scale_BC.view(32, 4).double(), wanted[:, None].expand(32, 4), rtol=1e-4, atol=0)
    means = (-shift_BC / scale_BC).view(32, 4).double()
    torch.testing.assert_close(means, wide_GL.mean(1)[:, None].expand(32, 4), rtol=1e-6, atol=1e-4)


LENGTHS = [(2048, 2048), (2049, 2049), (2112, 2112), (3000, 2051), (2051, 120), (14040, 512)]


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
@pytest.mark.parametrize(("samples", "heads"), [(1, 1), (1, 3), (1, 8), (2, 3)])
@pytest.mark.parametrize(("backend", "room"), [("auto", None), ("auto", 0), ("sdpa", None)])
def test_gradients_of_attention_of_any_length(monkeypatch, queries, keys, samples, heads, backend, room):
    """cuDNN's backward pass must be given whole tiles: of all heads, or of some at a time where room is short."""
    monkeypatch.setattr(kept_attention, "free_bytes", lambda device: room)
    torch.manual_seed(0)
    parts = [torch.randn(samples, length, heads, 128, device="cuda").bfloat16() for length in (queries, keys, keys)]
    grad = torch.randn_like(parts[0]) * 1e-3
    found = _gradients(lambda *parts: attention(*parts, backend=backend), parts, grad)
    expected = _gradients(
        lambda *parts: attention(*parts, backend="math"), [part.float() for part in parts], grad.float()
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.float() - theirs).norm() / theirs.norm() < 0.01


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0), reason="cuDNN is asked from Hopper on"
)
def test_gradients_of_one_sample_are_cut_without_a_copy():
    q, k, v, grad, out = (torch.randn(1, 2049, 3, 128, device="cuda").bfloat16() for _ in range(5))
    statistics = torch.randn(1, 3, 2049, device="cuda")
    parts = (part.transpose(1, 2) for part in (grad, q, k, v, out))
    for found in kept_attention._cudnn_backward(*parts, statistics):
        assert found.shape == (1, 3, 2049, 128) and found.transpose(1, 2).is_contiguous()


def _gradients(function, parts, grad):
    leaves = [part.clone().requires_grad_() for part in parts]
    return torch.autograd.grad(function(*leaves), leaves, grad)


def _unlike(samples, queries, keys, heads, width):
    """Queries, keys and values, the latter two with a mean and cut off."""
    torch.manual_seed(0)
    q = torch.randn(samples, queries, heads, width, device="cuda") * 1.5
    k, v = (
        torch.randn(samples, keys + 9, heads, width, device="cuda") + torch.randn(heads, width, device="cuda")
        for _ in range(2)
    )
    return q, k[:, :keys], v[:, :keys]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    "shape", [(1, 128, 256, 1, 64), (2, 200, 300, 2, 128), (2, 2049, 2500, 3, 128), (1, 3000, 4097, 2, 64)]
)
def test_eight_bit_attention_is_as_close_as_float8(dtype, shape):
    q, k, v = (part.to(dtype) for part in _unlike(*shape))
    exact = attention(q.float(), k.float(), v.float(), backend="math")
    spread = (exact - v.float().mean(1, keepdim=True)).norm()
    assert (eight_bit_attention.eight_bit_attention(q, k, v).float() - exact).norm() / spread < 0.06


@pytest.mark.parametrize("shape", [(1, 128, 128, 1, 64), (2, 200, 100, 3, 128)])
def test_eight_bit_attention_is_its_formula(shape):
    """With one block of keys, so that both round weights beside the same largest one."""
    parts = _unlike(*shape)
    found, formula = eight_bit_attention.eight_bit_attention(*parts), eight_bit_attention.formula(*parts)
    spread = (formula - parts[2].mean(1, keepdim=True)).norm()
    assert (found - formula).norm() / spread < 0.01
