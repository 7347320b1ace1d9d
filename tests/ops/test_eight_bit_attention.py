"""Attention in 8 bits: its formula against exact attention. Its kernels: tests/gpu/test_kernels.py."""

from __future__ import annotations

import pytest
import torch

from engine.contract.errors import OptionError
from engine.ops import attention as module
from engine.ops import eight_bit_attention as eight_bit
from engine.ops.attention import attention, check_backend


def parts(samples=2, queries=300, keys=2100, heads=2, width=64, spread=1.5, mean=0.0):
    torch.manual_seed(0)
    q = torch.randn(samples, queries, heads, width) * spread
    k, v = (torch.randn(samples, keys, heads, width) + mean * torch.randn(heads, width) for _ in range(2))
    return q, k, v


def error(found, exact, v):
    """In shares of what the results differ from the mean of the values: a mean alone is no attention."""
    return ((found - exact).norm() / (exact - v.mean(1, keepdim=True)).norm()).item()


@pytest.mark.parametrize("mean", [0.0, 3.0])
@pytest.mark.parametrize("spread", [1.5, 8.0])
@pytest.mark.parametrize("width", [64, 128])
def test_is_close_to_exact_attention(width, spread, mean):
    """As close as float8 is, whether weights are spread over many keys or are on one; also where keys and values have a
    mean that is larger than what they differ by, since codes are of the rest."""
    q, k, v = parts(width=width, spread=spread, mean=mean)
    assert error(attention(q, k, v, backend="8bit"), attention(q, k, v), v) < 0.05


def test_each_sample_has_its_own_keys():
    q, k, v = parts(samples=3)
    lengths = torch.tensor([2100, 2049, 2048])
    found = attention(q, k, v, key_lengths_B=lengths, backend="8bit")
    for i, length in enumerate(lengths):
        alone = attention(q[i : i + 1], k[i : i + 1, :length], v[i : i + 1, :length], backend="8bit")
        torch.testing.assert_close(found[i : i + 1], alone)


def test_few_keys_and_other_heads_are_attended_to_exactly():
    for q, k, v in (parts(keys=eight_bit.SHORTEST - 1), parts(width=32)):
        assert torch.equal(attention(q, k, v, backend="8bit"), attention(q, k, v))


def test_equal_keys_and_values_are_no_division_by_zero():
    q, k, v = parts()
    k, v = k[:, :1].expand_as(k), v[:, :1].expand_as(v)
    torch.testing.assert_close(attention(q, k, v, backend="8bit"), v[:, :300], rtol=1e-5, atol=1e-5)


def test_dtype_is_that_of_the_values():
    q, k, v = (part.bfloat16() for part in parts())
    assert attention(q, k, v, backend="8bit").dtype == torch.bfloat16


@pytest.mark.parametrize(("capability", "why"), [((8, 0), "compute capability 8.9 or more"), ((9, 0), "Triton")])
def test_a_gpu_that_cannot_is_told(monkeypatch, capability, why):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    module._kernels.clear()
    eight_bit.missing.cache_clear()
    with pytest.raises(OptionError, match=why) as caught:
        check_backend("8bit")
    assert "--attn_mode auto" in caught.value.hint
    eight_bit.missing.cache_clear()
    module._kernels.clear()


def test_compiled_it_is_the_same():
    q, k, v = parts(samples=1, queries=64)
    check_backend("8bit")  # as models do
    compiled = torch.compile(lambda *parts: attention(*parts, backend="8bit") * 2, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v), attention(q, k, v, backend="8bit") * 2)
