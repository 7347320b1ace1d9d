"""Attention against a plain softmax, and the refusals of each backend."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from engine.contract.errors import OptionError
from engine.ops import attention as module
from engine.ops.attention import BACKENDS, attention, available_backends, check_backend, padded_attention


def plain(q_BLHD, k_BLHD, v_BLHD, lengths=None):
    """softmax(q k^T / sqrt(D)) v, written out."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q_BLHD, k_BLHD) / q_BLHD.shape[-1] ** 0.5
    if lengths is not None:
        keep = torch.arange(k_BLHD.shape[1])[None] < torch.tensor(lengths)[:, None]
        scores = scores.masked_fill(~keep[:, None, None], float("-inf"))
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v_BLHD)


@pytest.fixture
def qkv():
    torch.manual_seed(0)
    return torch.randn(3, 5, 2, 8), torch.randn(3, 7, 2, 8), torch.randn(3, 7, 2, 8)


@pytest.fixture
def clean_cache():
    module._kernels.clear()
    yield
    module._kernels.clear()


@pytest.mark.parametrize("backend", ["auto", "sdpa", "torch", "math"])
@pytest.mark.parametrize("lengths", [None, [7, 7, 7], [4, 4, 4], [1, 7, 3]])
def test_equals_a_plain_softmax(qkv, backend, lengths):
    given = None if lengths is None else torch.tensor(lengths)
    out = attention(*qkv, key_lengths_B=given, backend=backend)
    assert out.shape == (3, 5, 2, 8)
    assert (out - plain(*qkv, lengths)).abs().max() < 1e-6


@pytest.mark.parametrize("autocast", [False, True])
def test_what_a_compiler_does_not_look_into_is_the_same(autocast):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3 * length, 2, 8)[:, ::3] for length in (5, 7, 7))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.no_grad():
        ours = torch.compile(module._for_results_alone, backend="aot_eager", fullgraph=True)(q, k, v)
        theirs = attention(q, k, v, backend="math")
    assert ours.dtype == theirs.dtype == (torch.bfloat16 if autocast else torch.float32)
    torch.testing.assert_close(ours, theirs, rtol=0.02 if autocast else 1e-5, atol=0.02 if autocast else 1e-6)
    torch.library.opcheck(torch.ops.musubi.fastest_attention.default, (q, k, torch.randn(2, 7, 2, 8)))


def test_ignored_keys_may_hold_anything(qkv):
    """Padding must not reach the result, not even NaN: a mask that multiplies by zero would let it."""
    q, k, v = qkv
    k[1, 4:], v[1, 4:] = float("nan"), float("inf")
    out = attention(q, k, v, key_lengths_B=torch.tensor([7, 4, 7]))
    assert out.isfinite().all()


def test_gradients_equal_those_of_a_plain_softmax(qkv):
    lengths, weight = [2, 7, 5], torch.randn(3, 5, 2, 8)
    grads = []
    for function in (lambda *a: attention(*a, key_lengths_B=torch.tensor(lengths)), lambda *a: plain(*a, lengths)):
        inputs = [part.clone().requires_grad_() for part in qkv]
        (function(*inputs) * weight).sum().backward()
        grads.append([part.grad for part in inputs])
    assert all((one - other).abs().max() < 1e-6 for one, other in zip(*grads, strict=True))


@pytest.mark.parametrize(("dtype", "tokens", "limit"), [
    (torch.float32, 5, 1e-6), (torch.bfloat16, 5, 2**-7), (torch.bfloat16, 1 << 14, 0.1),
])  # fmt: skip
def test_a_last_key_that_counts_often_is_so_many_keys(qkv, dtype, tokens, limit):
    """With gradients: those of the last key and value add up. Many in bfloat16 are made,
    and PyTorch adds their gradients up in bfloat16."""
    _, k, v = qkv
    inputs = [part.to(dtype).requires_grad_() for part in (torch.randn(3, tokens, 2, 8), k, v)]
    exact = [part.detach().double().requires_grad_() for part in inputs]
    many = [torch.cat([part, part[:, -1:].expand(-1, 499, -1, -1)], dim=1) for part in exact[1:]]
    out, wanted = padded_attention(*inputs, padding=499), plain(exact[0], *many)
    assert out.dtype == dtype and (out - wanted).abs().max() < limit
    weight = torch.randn_like(wanted).to(dtype)
    out.backward(weight)
    wanted.backward(weight.double())
    for one, other in zip(inputs, exact, strict=True):
        assert (one.grad - other.grad).abs().max() <= limit * other.grad.abs().max()


def test_a_kernel_that_is_asked_for_computes_all_keys(qkv, monkeypatch):
    """Math's softmax over 506 keys is 2e-5 off."""
    q, k, v = (part.double() for part in qkv)
    wanted = plain(q, *(torch.cat([part, part[:, -1:].expand(-1, 499, -1, -1)], dim=1) for part in (k, v)))
    assert (padded_attention(*qkv, padding=499, backend="math") - wanted).abs().max() < 1e-4
    monkeypatch.setattr(module, "_weighed", None)
    assert padded_attention(*qkv, padding=499, backend="math").isfinite().all()


def test_short_bfloat16_that_learns_on_a_cpu_is_computed_in_float32(qkv):
    """The gradients are those of float32, rounded once."""
    inputs = [part.bfloat16().requires_grad_() for part in qkv]
    exact = [part.detach().float().requires_grad_() for part in inputs]
    out, wanted = attention(*inputs), plain(*exact, None)
    weight = torch.randn_like(wanted).bfloat16()
    out.backward(weight)
    wanted.backward(weight.float())
    assert out.dtype == torch.bfloat16 and out.equal(wanted.bfloat16())
    for one, other in zip(inputs, exact, strict=True):
        assert (one.grad - other.grad).abs().max() <= 2**-8 * other.grad.abs().max()


def test_no_dense_mask_is_ever_made(qkv, monkeypatch):
    """50 000 tokens squared would be 2.5 GB a sample."""
    seen = []
    real = torch.nn.functional.scaled_dot_product_attention

    def spy(*arguments, **named):
        seen.append(named.get("attn_mask"))
        return real(*arguments, **named)

    monkeypatch.setattr(module.F, "scaled_dot_product_attention", spy)
    attention(*qkv, key_lengths_B=torch.tensor([1, 7, 3]))
    assert seen == [None, None, None]


@pytest.mark.parametrize("lengths", [[7, 7], [0, 7, 7], [8, 7, 7]])
def test_impossible_lengths_are_refused(qkv, lengths):
    with pytest.raises(ValueError, match="key lengths"):
        attention(*qkv, key_lengths_B=torch.tensor(lengths))


def test_an_unknown_backend_lists_those_that_exist():
    with pytest.raises(OptionError, match="no attention backend 'flahs'") as caught:
        check_backend("flahs")
    assert all(name in caught.value.hint for name in BACKENDS)


@pytest.mark.parametrize(
    ("backend", "package", "way"),
    [
        ("flash2", "flash_attn", "python -m env_bootstrap add flash-attn"),
        ("flash3", "flash_attn_interface", "Build it from its source with"),
        ("xformers", "xformers.ops", "python -m env_bootstrap add xformers"),
        ("sageattn", "sageattention", "python -m env_bootstrap add sageattention"),
    ],
)
def test_a_missing_package_is_named_with_the_line_that_installs_it(backend, package, way, monkeypatch, clean_cache):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(OptionError, match=f"backend {backend} needs the package") as caught:
        check_backend(backend)
    assert way in caught.value.hint


def test_sage_generates_but_does_not_train(monkeypatch, clean_cache):
    """It has no backward pass: gradients would silently be missing."""
    fake = types.ModuleType("sageattention")
    fake.sageattn = lambda q, k, v, *, tensor_layout, is_causal: plain(q.float(), k.float(), v.float()).to(q.dtype)
    monkeypatch.setitem(sys.modules, "sageattention", fake)
    q, k, v = (torch.randn(1, 4, 2, 8, dtype=torch.bfloat16) for _ in range(3))
    assert attention(q, k, v, backend="sageattn").shape == q.shape
    with pytest.raises(OptionError, match="no backward pass"):
        attention(q.requires_grad_(), k, v, backend="sageattn")
    with torch.no_grad():
        attention(q, k, v, backend="sageattn")
    with pytest.raises(OptionError, match="not in float32"):
        attention(q.detach().float(), k.float(), v.float(), backend="sageattn")


def test_flash_3_of_either_age_gives_a_tensor(monkeypatch, clean_cache):
    fake = types.ModuleType("flash_attn_interface")
    monkeypatch.setitem(sys.modules, "flash_attn_interface", fake)
    q, k, v = (torch.randn(1, 4, 2, 8, dtype=torch.bfloat16) for _ in range(3))
    for result in (lambda q, k, v: q, lambda q, k, v: (q, None)):
        fake.flash_attn_func = result
        module._kernels.clear()
        assert torch.equal(attention(q, k, v, backend="flash3"), q)


@pytest.mark.parametrize("installed", [(), ("flash_attn",), ("flash_attn_interface",), ("xformers", "sageattention")])
def test_available_backends_follow_installed_packages(monkeypatch, installed):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object() if name in installed else None)
    names = {
        "flash_attn": "flash2",
        "flash_attn_interface": "flash3",
        "xformers": "xformers",
        "sageattention": "sageattn",
    }
    expected = {"auto", "sdpa", "torch", "math", *(names[package] for package in installed)}
    expected |= {"flash"} if expected & {"flash2", "flash3"} else set()
    assert set(available_backends()) == expected
