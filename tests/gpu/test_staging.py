"""Tensors moved by several threads are what they were, bit for bit, in layouts of any kind."""

from __future__ import annotations

import time

import pytest
import torch

from engine.ops.staging import SMALL_BYTES, STAGE_BYTES, moved

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def some() -> list[torch.Tensor]:
    """Small ones and large ones, of several stages and of parts of one, and some that are not in rows."""
    counts = (1, SMALL_BYTES - 1, SMALL_BYTES, STAGE_BYTES, STAGE_BYTES + 1, 5 * STAGE_BYTES // 2 + 3)
    found = [torch.randint(0, 256, (count,), dtype=torch.uint8) for count in counts for _ in range(3)]
    found += [torch.randn(1500, 2000).to(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn)]
    in_columns, in_steps = torch.randn(2000, 1500).T, torch.randn(64, 32, 40, 40)[:, :, ::2]
    return [*found, in_columns, in_steps, torch.tensor(3.0), torch.empty(0)]


def alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    same = one.dtype == other.dtype and one.shape == other.shape and one.stride() == other.stride()
    return same and torch.equal(one.float(), other.cpu().float())


def test_there_and_back() -> None:
    given = some()
    there = list(moved((tensor, GPU) for tensor in given))
    assert all(tensor.is_cuda and alike(was.to(GPU).cpu(), tensor) for was, tensor in zip(given, there, strict=True))
    back = list(moved((tensor, CPU) for tensor in there))
    assert not any(tensor.is_cuda for tensor in back)
    assert all(alike(was.cpu(), tensor) for was, tensor in zip(there, back, strict=True))


def test_it_is_not_slower_than_one_thread(capsys) -> None:
    weights = [torch.empty(5120, 13824, dtype=torch.bfloat16, device=GPU).normal_() for _ in range(40)]

    def seconds(move) -> tuple[float, list[torch.Tensor]]:
        torch.cuda.synchronize()
        began = time.perf_counter()
        found = move()
        torch.cuda.synchronize()
        return time.perf_counter() - began, found

    out_s, host = seconds(lambda: list(moved((tensor, CPU) for tensor in weights)))
    plain_out_s, plain = seconds(lambda: [tensor.cpu() for tensor in weights])
    assert all(map(torch.equal, host, plain))
    del plain
    in_s, _ = seconds(lambda: list(moved((tensor, GPU) for tensor in host)))
    plain_in_s, _ = seconds(lambda: [tensor.to(GPU) for tensor in host])
    size = sum(tensor.nbytes for tensor in host) / 1e9
    with capsys.disabled():
        print(f"\nto main memory {size / out_s:.1f} GB/s (one thread {size / plain_out_s:.1f}), ", end="")
        print(f"to the GPU {size / in_s:.1f} GB/s (one thread {size / plain_in_s:.1f})")
    assert out_s < 1.2 * plain_out_s and in_s < 1.2 * plain_in_s
