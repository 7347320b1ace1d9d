"""Streamed blocks on disk and a real GPU: page-locked buffers, copies beside computing, the same numbers."""

from __future__ import annotations

import gc

import pytest
import torch

from engine.memory.checkpointing import checkpoint_blocks
from engine.memory.compile import compile_blocks
from engine.memory.disk_loading import LeaveOnDisk
from engine.memory.exchange import WeightSets
from engine.memory.fp8 import QuantizeOnLoad, quantize_model
from engine.memory.streaming import stream_blocks
from engine.parts.mapped_files import holder
from engine.parts.weights import load_into, open_weights, write_weights
from tests.gpu.test_exchange import COUNT, WIDTH, model
from tests.gpu.test_memory import MIB, build, build_on_gpu, cosine, seconds
from tests.memory.toy import Stack, inputs, train_steps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]


@pytest.fixture(autouse=True)
def _clean(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSUBI_SCRATCH", str(tmp_path / "scratch"))
    torch.manual_seed(0)
    yield
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@pytest.mark.parametrize("fp8", [None, "channel", "block"])
@pytest.mark.parametrize("count, slots", [(8, 1), (8, 2), (5, 2), (8, 3)])
@pytest.mark.parametrize("wrap", ["none", "checkpoint", "offload"])
def test_no_bit_is_changed(fp8, count, slots, wrap):
    def run(from_disk):
        stack = build(fp8=fp8)
        stack.enter.to("cuda")
        stack.adapters.to("cuda")
        found = stream_blocks(stack.blocks, count, device="cuda", slots=slots, from_disk=from_disk)
        if wrap != "none":
            checkpoint_blocks(stack.blocks, offload=wrap == "offload", smallest_offload=0)
        seen = train_steps(stack, inputs(256, "cuda", torch.bfloat16), steps=3)
        if from_disk:
            assert all(buffer.is_pinned() for buffer in found.home._buffers.values())
            assert len(found.home._buffers) == slots
        return seen

    for ours, theirs in zip(run(True), run(False), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("slots", [2, 3])
def test_under_load_no_half_read_block_is_used(checkpointing, slots):
    """Large blocks, short computing: every block is late, and one used too soon would show as a wrong number."""

    def run(streamed):
        stack = build_on_gpu(12, 2048)
        if streamed:
            stream_blocks(stack.blocks, 12, device="cuda", slots=slots, from_disk=True)
        if checkpointing:
            checkpoint_blocks(stack.blocks)
        seen = train_steps(stack, inputs(2048, "cuda", torch.bfloat16), steps=4)
        with torch.no_grad():
            return [*seen, *(stack(*inputs(2048, "cuda", torch.bfloat16)).clone() for _ in range(3))]

    for ours, theirs in zip(run(True), run(False), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("mode", [None, "channel"])
def test_loading_leaves_streamed_blocks_on_disk_and_brings_the_rest_to_the_gpu(tmp_path, mode):
    def wanted(name):
        return mode is not None and (".up" in name or ".down" in name)

    path, given = tmp_path / "dit.safetensors", Stack(8, 256).to(torch.bfloat16)
    write_weights(path, given.state_dict())
    with torch.device("meta"):
        sketch, made = (Stack(8, 256).to(torch.bfloat16) for _ in range(2))
    inner = QuantizeOnLoad(made, wanted=wanted, mode=mode) if mode else None
    quantize_model(sketch, wanted=wanted, mode=mode or "channel")
    streamed = [1, 3, 5, 7]
    left = LeaveOnDisk(
        sketch, [sketch.blocks[index] for index in streamed], inner, changed=inner.changed if inner else (),
        device=torch.device("cuda"),
    )  # fmt: skip
    load_into(
        made, open_weights(path, role="--dit"), rename=lambda name: name, device="cuda", dtype=torch.bfloat16,
        transform=left,
    )  # fmt: skip
    if inner:
        inner.install(made)
    for index, block in enumerate(made.blocks):
        for parameter in block.parameters():
            assert (holder(parameter) is not None) == (index in streamed) == (parameter.device.type == "cpu")
    assert bool(left.scratch_bytes) == (mode is not None) and left.mapped_bytes
    made.adapt().adapters.to("cuda")
    stream = stream_blocks(made.blocks, 4, device="cuda", from_disk=True)
    assert stream.indices == streamed
    checkpoint_blocks(made.blocks)
    theirs = given.to("cuda")
    quantize_model(theirs, wanted=wanted, mode=mode or "channel")
    theirs.adapt().adapters.to("cuda")
    values = inputs(256, "cuda", torch.bfloat16)
    for one, other in zip(train_steps(made, values), train_steps(theirs, values), strict=True):
        assert torch.equal(one, other)


def test_reading_hides_behind_computing_where_the_cache_has_the_file():
    """Slower at most by what reading takes longer than computing; main memory holds two blocks."""
    width, tokens, count = 4096, 16384, 8

    def run(how):
        stack = build_on_gpu(count, width)
        stream = None if how is None else stream_blocks(stack.blocks, count, device="cuda", from_disk=how == "disk")
        checkpoint_blocks(stack.blocks)
        x = torch.randn(1, tokens, width, device="cuda", dtype=torch.bfloat16)
        time_ = torch.randn(1, 2, width, device="cuda", dtype=torch.bfloat16)
        taken = seconds(lambda: stack(x, time_).float().square().mean().backward(), repeats=5)
        return taken, stream

    resident_s, _ = run(None)
    ordinary_s, ordinary = run("main memory")
    disk_s, disk = run("disk")
    block = ordinary.host_bytes // count
    read_s = 2 * (count - 1) * block / disk.home.speed()
    print(f"resident {resident_s:.4f} s, main memory {ordinary_s:.4f} s, disk {disk_s:.4f} s: blocks of "
          f"{block / MIB:.0f} MiB at {disk.home.speed() / 1e9:.1f} GB/s, {read_s:.4f} s a step")  # fmt: skip
    assert disk.host_bytes < 2.1 * block and disk.waits == 0
    assert disk_s < 1.15 * max(ordinary_s, read_s) + 0.02


def test_compiled_streamed_and_checkpointed():
    def run(wrapped):
        torch._dynamo.reset()
        stack = build(fp8="channel")
        stack.enter.to("cuda")
        stack.adapters.to("cuda")
        if wrapped:
            compile_blocks(stack.blocks, cache_size_limit=64)
            stream_blocks(stack.blocks, 8, device="cuda", from_disk=True)
            checkpoint_blocks(stack.blocks, offload=True, smallest_offload=0)
        else:
            stack.to("cuda")
        return train_steps(stack, inputs(256, "cuda", torch.bfloat16), steps=1)

    for ours, theirs in zip(run(True), run(False), strict=True):
        assert cosine(ours, theirs) > 0.99


def test_sets_of_weights_take_turns():
    x = torch.randn(64, WIDTH, device="cuda", dtype=torch.bfloat16)
    wanted = []
    for seed in (0, 1):
        made, _ = model(seed, "cuda")
        wanted.append(made(x).clone())
        del made
    made, blocks = model(0, "cpu")
    stream = stream_blocks(blocks, COUNT, device="cuda", from_disk=True)
    made.inlet.to("cuda")
    made.shift = made.shift.to("cuda")
    sets = WeightSets(made, blocks, 0, lambda seed: model(seed, "cpu"), stream=stream, pinned=True)
    for number in (0, 1, 0, 1, 1, 0):
        sets.use(number)
        assert torch.equal(made(x), wanted[number]), number


def test_the_end_of_the_model_is_the_end_of_its_buffers_and_its_thread():
    stack = build_on_gpu(8, 512)
    stream = stream_blocks(stack.blocks, 8, device="cuda", from_disk=True)
    stack(*inputs(512, "cuda", torch.bfloat16))
    home, before = stream.home, torch.cuda.memory_allocated()
    threads = [*home._order._threads, *home._readers._threads]
    del stack, stream, home
    gc.collect()
    for thread in threads:
        thread.join(timeout=10)
        assert not thread.is_alive()
    assert torch.cuda.memory_allocated() < before
