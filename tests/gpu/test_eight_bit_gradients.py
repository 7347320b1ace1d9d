"""The kernels of attention's gradients in 8 bits against their formula, float64 and cuDNN's."""

from __future__ import annotations

import math

import pytest
import torch

from engine.ops import eight_bit_gradients
from engine.ops.attention import attention, check_backend
from engine.ops.eight_bit_gradients import attend, differentiate, missing
from engine.ops.kept_attention import Shelf

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
    pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.get_device_capability()[0] != 9, reason="kernels for Hopper"
    ),
]
SHAPES = [
    (1, 2048, 2048, 2, 128),
    (2, 1000, 1333, 3, 128),
    (1, 129, 2500, 2, 128),
    (1, 1500, 1500, 2, 64),
    (2, 7, 200, 1, 64),
]


def tokens(samples, queries, keys, heads, width, dtype=torch.bfloat16, *, alike=0.0, mean=0.0, spread=1.0):
    """q, k, v and a gradient. `alike`: how much tokens that follow each other have in common."""
    torch.manual_seed(0)
    groups = torch.randn(samples, 16, heads, width, device="cuda")
    made = []
    for number, length in enumerate((queries, keys, keys, queries)):
        own = torch.randn(samples, length, heads, width, device="cuda")
        if alike:
            own = 0.5 * own + alike * groups.repeat_interleave(-(-length // 16), 1)[:, :length]
        if number in (1, 2):
            own = own + mean * torch.randn(samples, 1, heads, width, device="cuda")
        made.append((own * spread if number == 0 else own).to(dtype))
    return made


def gradients(q, k, v, grad, backend):
    leaves = [part.clone().requires_grad_() for part in (q, k, v)]
    return torch.autograd.grad(attention(*leaves, backend=backend), leaves, grad)


def exact(q, k, v, grad):
    leaves = [part.double().requires_grad_() for part in (q, k, v)]
    score = torch.einsum("bmhd,bnhd->bhmn", leaves[0], leaves[1]) / math.sqrt(q.shape[-1])
    out = torch.einsum("bhmn,bnhd->bmhd", score.softmax(-1), leaves[2])
    return torch.autograd.grad(out, leaves, grad.double())


def errors(found, wanted):
    pairs = zip(found, wanted, strict=True)
    return [
        ((one.double() - other.to(one.device).double()).norm() / other.double().norm()).item() for one, other in pairs
    ]


def test_they_can_run_here():
    assert missing(torch.device("cuda", 0)) is None
    check_backend("8bit", torch.device("cuda", 0), learning=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_they_are_their_formula(shape):
    parts = tokens(*shape, alike=0.6)
    q, k, v, grad = parts
    out, found = attend(q, k, v)
    kernels = differentiate(grad, q, k, v, out, found)
    formula = eight_bit_gradients._formula(*(part.cpu() for part in (grad, q, k, v, out, found)))
    assert max(errors(kernels, formula)) < 0.012  # here and there a code is the next one
    last = [[one[:, -(one.shape[1] % 64 or 64) :] for one in each] for each in (kernels, formula)]
    assert max(errors(*last)) < 0.03


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES[:4])
def test_they_are_as_close_as_float8(shape, dtype):
    parts = tokens(*shape, dtype, spread=1.5)
    out, found = attend(*parts[:3])
    assert max(errors(differentiate(parts[3], *parts[:3], out, found), exact(*parts))) < 0.06


@pytest.mark.parametrize("how", [{"mean": 3.0}, {"alike": 1.2}])
def test_where_keys_have_much_in_common_they_are_closer_than_cudnns(how):
    parts = tokens(1, 2176, 2176, 2, 128, **how)
    wanted = exact(*parts)
    ours, theirs = (errors(gradients(*parts, backend), wanted)[0] for backend in ("8bit", "auto"))
    assert ours < theirs and ours < 0.12


@pytest.mark.parametrize("power", [-40, -10, 20])
def test_gradients_of_any_size(power):
    q, k, v, grad = tokens(1, 2048, 2048, 2, 128)
    plain, scaled = gradients(q, k, v, grad, "8bit"), gradients(q, k, v, grad * 2.0**power, "8bit")
    assert max(errors([one / 2.0**power for one in scaled], plain)) < 1e-3


def test_no_gradient_is_none():
    q, k, v, grad = tokens(1, 2048, 2048, 2, 128)
    assert all(not found.any() for found in gradients(q, k, v, grad * 0, "8bit"))
    q_grad, k_grad, v_grad = gradients(q, k, v[:, :1].expand_as(v).contiguous(), grad, "8bit")
    assert max(q_grad.abs().max(), k_grad.abs().max()) < 1e-5 and v_grad.isfinite().all() and v_grad.any()


def test_a_large_part_of_the_gradient_in_few_tokens():
    q, k, v, grad = tokens(1, 2048, 2048, 2, 128)
    grad = grad * torch.exp(2 * torch.randn(1, 2048, 2, 1, device="cuda")).bfloat16()
    assert max(errors(gradients(q, k, v, grad, "8bit"), exact(q, k, v, grad))) < 0.06


def test_parts_of_other_tensors():
    q, k, v, grad = tokens(2, 2100, 2300, 4, 128)
    k[:, 2200:], v[:, 2200:] = 100, float("nan")
    k, v = k[:, :2200], v[:, :2200]
    plain = gradients(q, k.contiguous(), v.contiguous(), grad, "8bit")
    leaves = [part.detach().requires_grad_() for part in (q, k, v)]
    views = torch.autograd.grad(attention(*leaves, backend="8bit"), leaves, grad)
    assert all(torch.equal(one, other) for one, other in zip(plain, views, strict=True))


def test_twice_they_are_the_same():
    parts = tokens(1, 3000, 3000, 3, 128)
    twice = [gradients(*parts, "8bit") for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*twice, strict=True))


def test_kept_and_compiled_they_are_the_same(monkeypatch):
    q, k, v, grad = tokens(1, 2500, 2500, 2, 128)
    plain = gradients(q, k, v, grad, "8bit")
    compiled = torch.compile(lambda *parts: attention(*parts, backend="8bit") * 1)
    leaves = [part.clone().requires_grad_() for part in (q, k, v)]
    shelf = Shelf(None)
    writing, reading = shelf.contexts()
    with torch.no_grad(), writing:
        kept = attention(*leaves, backend="8bit")
    with monkeypatch.context() as once, reading:
        once.setattr("engine.ops.kept_attention.attend", None)
        again = attention(*leaves, backend="8bit")
    assert torch.equal(kept, again)
    for out in (again, compiled(*leaves)):
        found = torch.autograd.grad(out, leaves, grad)
        assert all(torch.equal(one, other) for one, other in zip(plain, found, strict=True))
