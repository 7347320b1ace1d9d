"""Weights that take turns on a real GPU: the memory of one set whatever waits, and the same numbers."""

from __future__ import annotations

import gc
import time

import pytest
import torch
from torch import nn

from engine.memory.exchange import WeightSets
from engine.memory.streaming import stream_blocks
from tests.memory.test_exchange import Model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]
MIB = 2**20
WIDTH, COUNT = 4096, 32


def model(seed: int, device: str) -> tuple[nn.Module, nn.ModuleList]:
    made = Model(seed, width=WIDTH, count=COUNT, dtype=torch.bfloat16).to(device)
    return made, made.blocks


def size_of(made: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in made.state_dict().values())


@pytest.mark.parametrize("pinned", [True, False])
def test_a_turn_from_main_memory_holds_one_set_on_the_gpu(pinned):
    gc.collect()
    torch.cuda.empty_cache()
    wanted = []
    x = torch.randn(64, WIDTH, device="cuda", dtype=torch.bfloat16)
    for seed in (0, 1):
        made, _ = model(seed, "cuda")
        wanted.append(made(x).clone())
        del made
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    made, blocks = model(0, "cuda")
    size = size_of(made)
    sets = WeightSets(made, blocks, 0, lambda seed: model(seed, "cpu"), pinned=pinned)
    torch.cuda.reset_peak_memory_stats()
    sets.use(1)
    for number in (1, 0, 1, 0):
        torch.cuda.synchronize()
        start_s = time.perf_counter()
        sets.use(number)
        torch.cuda.synchronize()
        took_s = time.perf_counter() - start_s
        assert torch.equal(made(x), wanted[number])
    peak = torch.cuda.max_memory_allocated() - before
    print(f"pinned {pinned}: {size / MIB:.0f} MiB, peak {peak / MIB:.0f} MiB, a turn {took_s * 1e3:.0f} ms, "
          f"{2 * size / took_s / 2**30:.1f} GiB/s")  # fmt: skip
    assert peak < 1.3 * size


def test_streamed_blocks_take_turns_without_a_copy():
    x = torch.randn(64, WIDTH, device="cuda", dtype=torch.bfloat16)
    wanted = []
    for seed in (0, 1):
        made, _ = model(seed, "cuda")
        wanted.append(made(x).clone())
        del made
    made, blocks = model(0, "cpu")
    stream = stream_blocks(blocks, COUNT, device="cuda")
    made.inlet.to("cuda")
    made.shift = made.shift.to("cuda")
    sets = WeightSets(made, blocks, 0, lambda seed: model(seed, "cpu"), stream=stream, pinned=True)
    for number in (0, 1, 0, 1, 1, 0):
        sets.use(number)
        assert torch.equal(made(x), wanted[number]), number
