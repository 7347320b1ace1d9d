"""Attention in 8 bits: its formula against exact attention. Its kernels: tests/gpu/test_kernels.py."""

from __future__ import annotations

import subprocess

import pytest
import torch

from engine.contract.errors import OptionError
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
        exact = attention(q[i : i + 1], k[i : i + 1, :length], v[i : i + 1, :length])
        assert error(found[i : i + 1], exact, v[i : i + 1, :length]) < 0.05


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


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that is said to be there."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(eight_bit.importlib.util, "find_spec", lambda name: object())
    eight_bit.missing.cache_clear()
    yield torch.device("cuda", 0)
    eight_bit.missing.cache_clear()


def refused(device):
    with pytest.raises(OptionError, match="8bit cannot be used here") as caught:
        check_backend("8bit", device)
    assert "--attn_mode auto" in caught.value.hint
    return caught.value.message


def test_an_older_gpu_is_told(monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert "compute capability 8.9 or higher" in refused(gpu) and "8.0" in refused(gpu)


def test_a_missing_triton_is_told(monkeypatch, gpu):
    monkeypatch.setattr(eight_bit.importlib.util, "find_spec", lambda name: None)
    assert "needs the package triton" in refused(gpu) and "env_bootstrap add" in refused(gpu)


def test_a_compiler_that_fails_is_told(monkeypatch, gpu):
    def fail(device):
        raise subprocess.CalledProcessError(1, ["cc"])

    monkeypatch.setattr(eight_bit, "_try_out", fail)
    assert "Triton cannot compile" in refused(gpu)


def test_other_devices_are_told_and_a_cpu_is_not():
    assert "not for mps" in refused(torch.device("mps"))
    check_backend("8bit", torch.device("cpu"))


def test_compiled_it_is_the_same():
    q, k, v = parts(samples=1, queries=64)
    check_backend("8bit")  # as models do
    compiled = torch.compile(lambda *parts: attention(*parts, backend="8bit") * 2, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v), attention(q, k, v, backend="8bit") * 2)
