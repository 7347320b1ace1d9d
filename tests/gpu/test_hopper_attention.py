"""Our attention kernel for Hopper against float64, PyTorch's kernels and the one for other GPUs."""

from __future__ import annotations

import math

import pytest
import torch

from engine.ops import attention, hopper_attention, kept_attention
from engine.ops.hopper_attention import can_run, token_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
    pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.get_device_capability()[0] != 9, reason="a kernel for Hopper"
    ),
]
SHAPES = [(1, 16, 16, 1, 64), (2, 2049, 2500, 3, 128), (1, 3000, 4097, 2, 64), (1, 193, 129, 5, 128), (2, 7, 1, 2, 128)]


def _tokens(samples, queries, keys, heads, width, dtype):
    torch.manual_seed(0)
    lengths = (queries, keys, keys)
    return [torch.randn(samples, length, heads, width, device="cuda").to(dtype) for length in lengths]


def _exact(q, k, v):
    score = torch.einsum("bmhd,bnhd->bhmn", q.double(), k.double()) / math.sqrt(q.shape[-1])
    return torch.einsum("bhmn,bnhd->bmhd", score.softmax(-1), v.double()), score.logsumexp(-1)


def _error(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8])
def test_it_can_run_here(dtype, width):
    assert can_run(torch.device("cuda", 0), dtype, width)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_rounds_no_more_than_pytorchs_kernels(shape, dtype):
    q, k, v = _tokens(*shape, dtype)
    exact, statistics = _exact(q, k, v)
    found, found_statistics = hopper_attention.hopper_attention(q, k, v)
    theirs = _error(attention._run("cudnn" if shape[2] > 1 else "flash", q, k, v), exact)
    luck = 1.05 if found.numel() > 10_000 else 1.2  # of few numbers
    assert _error(found, exact) <= luck * theirs + 1e-6
    torch.testing.assert_close(found_statistics.double(), statistics, rtol=0, atol=1e-4)


def test_large_scores_are_no_infinity():
    q, k, v = _tokens(1, 300, 300, 2, 128, torch.bfloat16)
    q, k = q * 30, k * 30
    exact, statistics = _exact(q, k, v)
    found, found_statistics = hopper_attention.hopper_attention(q, k, v)
    assert _error(found, exact) <= 1.05 * _error(attention._run("cudnn", q, k, v), exact) + 1e-6
    torch.testing.assert_close(found_statistics.double(), statistics, rtol=1e-5, atol=1e-4)


def _views():
    """q, k and v that lie in other tensors, among numbers that must not count."""
    torch.manual_seed(0)
    yield "of one tensor", torch.randn(2, 700, 3, 4, 128, device="cuda").bfloat16().unbind(2), True
    q, k, v = _tokens(1, 700, 900, 4, 128, torch.bfloat16)
    k[:, 600:], v[:, 600:] = 100, float("nan")
    yield "keys cut off", (q, k[:, :600], v[:, :600]), True
    q, k, v = _tokens(2, 700, 900, 4, 64, torch.bfloat16)
    k[:, 600:], v[:, 600:] = 100, float("nan")
    yield "keys of two samples cut off", (q, k[:, :600], v[:, :600]), False
    parts = _tokens(2, 300, 200, 4, 64, torch.float16)
    yield "heads before tokens", [part.transpose(1, 2).contiguous().transpose(1, 2) for part in parts], False


@pytest.mark.parametrize("number", range(4))
def test_parts_of_other_tensors(number):
    _, (q, k, v), in_place = list(_views())[number]
    assert (token_rows(k).data_ptr() == k.data_ptr()) == in_place
    found, statistics = hopper_attention.hopper_attention(q, k, v)
    wanted = hopper_attention.hopper_attention(q.contiguous(), k.contiguous(), v.contiguous())
    assert torch.equal(found, wanted[0]) and torch.equal(statistics, wanted[1])
    assert _error(found, _exact(q, k, v)[0]) < 0.01


@pytest.mark.parametrize(("queries", "keys"), [(2048, 2048), (2049, 2049), (3000, 2051), (120, 2051), (14040, 2100)])
@pytest.mark.parametrize(("samples", "heads"), [(1, 1), (1, 8), (2, 3)])
def test_gradients_with_its_result(monkeypatch, queries, keys, samples, heads):
    monkeypatch.setattr(kept_attention, "taken", lambda *_, **__: "hopper")
    parts = _tokens(samples, queries, keys, heads, 128, torch.bfloat16)
    assert kept_attention._kernels(*parts) is kept_attention._KERNELS["hopper"]
    grad = torch.randn_like(parts[0]) * 1e-3
    found = _gradients(parts, grad, "auto")
    exact = _gradients([part.float() for part in parts], grad.float(), "math")
    for ours, theirs in zip(found, exact, strict=True):
        assert (ours.float() - theirs).norm() / theirs.norm() < 0.01


def _gradients(parts, grad, backend):
    leaves = [part.clone().requires_grad_() for part in parts]
    return torch.autograd.grad(attention.attention(*leaves, backend=backend), leaves, grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(1, 128, 256, 1, 64), (2, 2049, 2500, 3, 128), (1, 3000, 4097, 2, 64)])
def test_in_8_bits_it_is_the_kernel_for_other_gpus(shape, dtype):
    from engine.ops.eight_bit_attention_triton import attend

    parts = _tokens(*shape, dtype)
    assert _error(attend(*parts, hopper=True), attend(*parts, hopper=False).double()) < 0.005


@pytest.mark.parametrize("failure", [RuntimeError("no Gluon"), 0.5])
def test_in_8_bits_the_kernel_for_other_gpus_is_taken_where_it_fails(monkeypatch, failure):
    from engine.ops import eight_bit_attention
    from engine.ops.eight_bit_attention_triton import attend

    def try_out(*_):
        if isinstance(failure, Exception):
            raise failure
        return failure

    parts = _tokens(1, 3000, 4097, 2, 128, torch.bfloat16)
    wanted, by_hopper = attend(*parts, hopper=False), attend(*parts, hopper=True)
    compiled = torch.compile(lambda *given: eight_bit_attention.eight_bit_attention(*given) + 0)
    assert torch.equal(attend(*parts), by_hopper) and torch.equal(compiled(*parts), by_hopper)
    monkeypatch.setattr(hopper_attention, "_try_out", try_out)
    can_run.cache_clear()
    try:
        assert torch.equal(attend(*parts), wanted) and torch.equal(compiled(*parts), wanted)
    finally:
        can_run.cache_clear()
