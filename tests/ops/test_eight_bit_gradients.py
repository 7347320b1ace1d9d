"""Gradients of attention in 8 bits: their formula against exact ones. Their kernels: tests/gpu."""

from __future__ import annotations

import math

import pytest
import torch

from engine.contract.errors import OptionError
from engine.ops import eight_bit_attention, eight_bit_gradients
from engine.ops.attention import attention, check_backend
from engine.ops.attention_sizes import SHORTEST
from engine.ops.eight_bit_gradients import attend, differentiate
from engine.ops.kept_attention import Shelf


def tokens(samples=1, queries=300, keys=SHORTEST + 52, heads=2, width=64, *, alike=0.0, mean=0.0, spread=1.0):
    """q, k, v and a gradient. `alike`: how much tokens that follow each other have in common."""
    torch.manual_seed(0)
    groups = torch.randn(samples, 16, heads, width)
    made = []
    for length in (queries, keys, keys, queries):
        own = torch.randn(samples, length, heads, width)
        if alike:
            own = 0.5 * own + alike * groups.repeat_interleave(-(-length // 16), 1)[:, :length]
        made.append(own)
    q, k, v, grad = made
    return q * spread, k + mean * torch.randn(heads, width), v + mean * torch.randn(heads, width), grad


def gradients(q, k, v, grad, backend):
    leaves = [part.clone().requires_grad_() for part in (q, k, v)]
    return torch.autograd.grad(attention(*leaves, backend=backend), leaves, grad.to(q.dtype))


def errors(parts, backend="8bit"):
    wanted = gradients(*(part.double() for part in parts), "auto")
    found = gradients(*parts, backend)
    return [((one - other).norm() / other.norm()).item() for one, other in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("how", [{}, {"width": 128}, {"samples": 2}, {"spread": 3.0}, {"queries": 2100, "mean": 3.0}])
def test_they_are_as_close_as_float8(how):
    assert max(errors(tokens(**how))) < 0.06


def test_what_rounding_leaves_of_a_sum_is_not_multiplied_with_the_keys_mean(monkeypatch):
    """Where tokens are alike in groups, as neighbours in a video are. Plainly rounded gradients to queries are far off
    there."""
    parts = tokens(queries=2112, keys=2112, alike=1.2)
    assert errors(parts)[0] < 0.15
    monkeypatch.setattr(eight_bit_gradients, "remainder", lambda term, total: torch.zeros_like(total))
    assert errors(parts)[0] > 0.5


@pytest.mark.parametrize(("keys", "share", "most"), [(2100, 0.5, 0.06), (32_768, 0.3, 0.13), (32_768, 0.5, 0.25)])
def test_keys_that_get_little_of_the_weights_have_gradients_too(keys, share, most):
    """One key has a large share of every query's weights. Of the others' gradients the whole says nothing: they are
    small beside that key's."""
    q, k, v, grad = tokens(queries=512, keys=keys, heads=1, width=128)
    q[..., 0], k[..., 0] = 4, 0
    k[:, 0], k[:, 0, :, 0] = 0, (math.log(share / (1 - share) * keys) + 0.5) * math.sqrt(128) / 4
    wanted = gradients(*(part.double() for part in (q, k, v, grad)), "auto")
    for one, other in zip(gradients(q, k, v, grad, "8bit"), wanted, strict=True):
        assert ((one - other).norm(dim=-1) / other.norm(dim=-1)).median() < most


def test_few_tokens_may_have_most_of_the_gradient():
    q, k, v, grad = tokens()
    assert max(errors((q, k, v, grad * torch.exp(2 * torch.randn(1, 300, 2, 1))))) < 0.06


@pytest.mark.parametrize("power", [-60, -10, 20])
def test_gradients_of_any_size_are_the_same_but_for_that(power):
    q, k, v, grad = tokens()
    plain, scaled = gradients(q, k, v, grad, "8bit"), gradients(q, k, v, grad * 2.0**power, "8bit")
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(other / 2.0**power, one)


def test_no_gradient_is_none():
    q, k, v, grad = tokens()
    assert all(not found.any() for found in gradients(q, k, v, grad * 0, "8bit"))
    q_grad, k_grad, v_grad = gradients(q, k, v[:, :1].expand_as(v).contiguous(), grad, "8bit")
    assert max(q_grad.abs().max(), k_grad.abs().max()) < 1e-5 and v_grad.isfinite().all() and v_grad.any()


def test_they_are_in_the_types_of_what_they_are_of():
    parts = [part.bfloat16() for part in tokens()]
    out, found = attend(*parts[:3])
    assert out.dtype == torch.bfloat16 and found.dtype == torch.float32 and found.shape == (2, 2, 300)
    assert {grad.dtype for grad in differentiate(parts[3], *parts[:3], out, found)} == {torch.bfloat16}


def test_results_are_those_without_gradients():
    q, k, v, _ = tokens()
    with torch.no_grad():
        wanted = attention(q, k, v, backend="8bit")
    assert torch.equal(attention(q.requires_grad_(), k, v, backend="8bit"), wanted)


def test_short_attention_is_exact():
    parts = tokens(keys=SHORTEST - 1)
    for one, other in zip(gradients(*parts, "8bit"), gradients(*parts, "auto"), strict=True):
        assert torch.equal(one, other)


def test_a_shelf_keeps_what_gradients_need(monkeypatch):
    q, k, v, grad = tokens()
    plain = gradients(q, k, v, grad, "8bit")
    leaves = [part.clone().requires_grad_() for part in (q, k, v)]
    writing, reading = Shelf(None).contexts()
    with torch.no_grad(), writing:
        kept = attention(*leaves, backend="8bit")
    monkeypatch.setattr("engine.ops.kept_attention.attend", None)  # not again
    with reading:
        again = attention(*leaves, backend="8bit")
    assert torch.equal(kept, again)
    for one, other in zip(torch.autograd.grad(again, leaves, grad), plain, strict=True):
        assert torch.equal(one, other)


def test_compiled_they_are_the_same():
    q, k, v, grad = tokens()
    check_backend("8bit")  # as models do
    compiled = torch.compile(lambda *parts: attention(*parts, backend="8bit") * 2, backend="aot_eager", fullgraph=True)
    leaves = [part.clone().requires_grad_() for part in (q, k, v)]
    found = torch.autograd.grad(compiled(*leaves), leaves, grad)
    for one, other in zip(found, gradients(q, k, v, grad * 2, "8bit"), strict=True):
        torch.testing.assert_close(one, other)


@pytest.fixture
def gpu(monkeypatch):
    """A Hopper GPU that is said to be there, whose kernels run."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(eight_bit_attention.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(eight_bit_attention, "_try_out", lambda device: None)
    monkeypatch.setattr(eight_bit_gradients, "can_run", lambda device, dtype, width: True)
    monkeypatch.setattr(eight_bit_gradients, "_try_out", lambda device, width: 0.001)
    caches = eight_bit_attention.missing, eight_bit_gradients.missing
    for cached in caches:
        cached.cache_clear()
    yield torch.device("cuda", 0)
    for cached in caches:
        cached.cache_clear()


def refused(device):
    with pytest.raises(OptionError, match="8bit cannot be used here") as caught:
        check_backend("8bit", device, learning=True)
    assert "Leave out --attn_8bit" in caught.value.hint
    return caught.value.message


def test_where_the_kernels_run_it_can_train(gpu):
    check_backend("8bit", gpu, learning=True)
    check_backend("8bit", torch.device("cpu"), learning=True)


@pytest.mark.parametrize("capability", [(8, 9), (10, 0), (12, 0)])
def test_other_gpus_generate_but_do_not_train(monkeypatch, gpu, capability):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    check_backend("8bit", gpu)
    assert "for H100 and H200 only" in refused(gpu)


def test_a_triton_without_gluon_is_told(monkeypatch, gpu):
    monkeypatch.setattr(eight_bit_gradients, "can_run", lambda device, dtype, width: False)
    assert "this version of Triton" in refused(gpu)


def test_a_compiler_that_fails_is_told(monkeypatch, gpu):
    def fail(device, width):
        raise RuntimeError("no ptxas")

    monkeypatch.setattr(eight_bit_gradients, "_try_out", fail)
    assert "no ptxas" in refused(gpu)


@pytest.mark.parametrize("difference", [0.2, float("nan")])
def test_wrong_gradients_are_told(monkeypatch, gpu, difference):
    monkeypatch.setattr(eight_bit_gradients, "_try_out", lambda device, width: difference)
    assert "wrong by" in refused(gpu)
