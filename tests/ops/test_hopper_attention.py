"""Our kernel for Hopper: where it is taken, what it reads in place. Its numbers: tests/gpu/test_hopper_attention.py."""

from __future__ import annotations

import pytest
import torch

from engine.ops import attention, hopper_attention, kept_attention
from engine.ops.attention_sizes import SHORTEST
from engine.ops.eight_bit_attention import key_at
from engine.ops.hopper_attention import can_run, may_run, token_rows

GPU = torch.device("cuda", 0)
BF16 = torch.bfloat16


@pytest.fixture
def hopper(monkeypatch):
    """A GPU that is said to be there, and what trying the kernel out there gives."""
    found = []

    def try_out(*asked):
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(hopper_attention, "_try_out", try_out)
    can_run.cache_clear()
    yield found
    can_run.cache_clear()


@pytest.mark.parametrize(
    ("error", "runs"),
    [(0.002, True), (0.02, False), (float("nan"), False), (ImportError("no gluon"), False), (KeyError("x"), False)],
)
def test_it_runs_where_it_compiles_and_is_right(hopper, error, runs):
    hopper.append(error)
    assert can_run(GPU, BF16, 128) == runs
    hopper[0] = AssertionError("tried out again")
    assert can_run(GPU, BF16, 128) == runs


def test_other_devices_types_and_heads_are_not_tried(hopper, monkeypatch):
    hopper.append(0.0)
    assert not can_run(torch.device("cpu"), BF16, 128) and not can_run(GPU, torch.float32, 128)
    assert not can_run(GPU, BF16, 96) and may_run(GPU, 64)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    assert not may_run(GPU, 128)


def _rows(samples, length, heads, width):
    return torch.randn(samples, length, heads, width).to(BF16)


IN_PLACE = {
    "whole": _rows(2, 5, 3, 64),
    "of one tensor with q and k": torch.randn(2, 5, 3, 3, 64).to(BF16).unbind(2)[2],
    "the first keys of one sample": _rows(1, 9, 3, 64)[:, :5],
    "the last keys of one sample": _rows(1, 9, 3, 64)[:, 4:],
    "some heads": _rows(2, 5, 6, 64)[:, :, 1:4],
    "one head": _rows(2, 5, 6, 64)[:, :, 1:2],
}
COPIED = {
    "the first keys of two samples": _rows(2, 9, 3, 64)[:, :5],
    "heads before tokens": _rows(2, 3, 5, 64).transpose(1, 2),
    "channels apart": _rows(2, 5, 3, 128)[..., ::2],
    "half of each head": _rows(2, 5, 3, 128)[..., :64],
    "one token for all": _rows(1, 1, 3, 64).expand(1, 5, 3, 64),
    "rows that begin anywhere": torch.randn(1, 5, 3 * 64 + 1).to(BF16)[..., : 3 * 64].unflatten(2, (3, 64)),
    "a first number that is not aligned": torch.randn(5 * 3 * 64 + 1).to(BF16)[1:].view(1, 5, 3, 64),
}


@pytest.mark.parametrize("name", [*IN_PLACE, *COPIED])
def test_what_the_copy_engine_can_read_is_read_where_it_lies(name):
    part = {**IN_PLACE, **COPIED}[name]
    rows = token_rows(part)
    assert torch.equal(rows, part.reshape(rows.shape)) and rows.stride(1) == 1
    assert rows.data_ptr() % 16 == 0 and rows.stride(0) * 2 % 16 == 0
    assert (rows.data_ptr() == part.data_ptr()) == (name in IN_PLACE)


def test_values_lie_where_their_weights_are():
    order = [key_at(place) for place in range(16)]
    assert order == [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]
    assert [key_at(16 + place) for place in range(16)] == [16 + key for key in order]
    kept = torch.arange(128).view(8, 2, 4, 2).permute(0, 2, 1, 3).flatten()  # as the kernel reads its weights
    assert torch.equal(key_at(torch.arange(128)), kept)


@pytest.fixture
def called(monkeypatch):
    """The kernel is said to have been chosen; how often it was called."""
    calls = []

    def kernel(q, k, v):
        calls.append(q.dtype)
        return q + 1, torch.zeros(q.shape[0], q.shape[2], q.shape[1])

    for module in (attention, kept_attention):
        monkeypatch.setattr(module, "taken", lambda *_, **__: "hopper")
        monkeypatch.setattr(module, "hopper_attention", kernel)
    return calls


def test_auto_takes_it_where_it_was_chosen_and_there_are_enough_keys(called):
    q, k, v = (torch.randn(1, length, 2, 64) for length in (5, SHORTEST, SHORTEST))
    assert torch.equal(attention._fastest(q, k, v), q + 1)
    assert torch.equal(attention._run("hopper", q, k, v), q + 1)
    assert len(called) == 2
    few = q, k[:, 1:], v[:, 1:]
    torch.testing.assert_close(attention._fastest(*few), attention.attention(*few))
    assert len(called) == 2


def test_auto_leaves_it_where_it_would_lose_gradients_or_values_are_wider(called):
    parts = [torch.randn(1, SHORTEST, 2, 64, requires_grad=True) for _ in range(3)]
    attention._fastest(*parts).sum().backward()
    assert not called and parts[2].grad is not None
    q, k, v = (torch.randn(1, SHORTEST, 2, width) for width in (64, 64, 72))
    assert attention._fastest(q, k, v).shape == (1, SHORTEST, 2, 72) and not called


def test_gradients_take_its_result_as_it_lies(called):
    q_BHLD = torch.randn(2, 5, 3, 64).transpose(1, 2)
    out_BHLD, statistics = kept_attention._hopper_forward(q_BHLD, q_BHLD, q_BHLD)
    assert out_BHLD.shape == (2, 3, 5, 64) and out_BHLD.transpose(1, 2).is_contiguous()
    assert statistics.shape == (2, 3, 5)


@pytest.mark.parametrize("runs", [False, True])
def test_it_is_tried_with_gradients_where_it_can_run(monkeypatch, runs):
    monkeypatch.setattr(kept_attention, "_possible", lambda *_: ["cudnn", "flash", "hopper"])
    monkeypatch.setattr(kept_attention, "can_run", lambda *_: runs)
    parts = [torch.empty(1, 4, 2, 64, device="meta") for _ in range(3)]
    assert list(kept_attention.trials(*parts)) == [*(["hopper"] if runs else []), "cudnn", "flash"]
