"""What of `engine/memory` only a CUDA GPU can show: real fp8 products, copies beside computing, low memory."""

from __future__ import annotations

import gc
import time

import pytest
import torch
from torch import nn

from engine.memory.checkpointing import checkpoint_blocks
from engine.memory.compile import compile_blocks
from engine.memory.fp8 import Fp8Linear, dequantize, has_fp8_products, quantize_model
from engine.memory.streaming import stream_blocks
from engine.ops.host import host_bytes
from tests.memory.toy import Stack, inputs, train_steps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]
MIB = 2**20


@pytest.fixture(autouse=True)
def clean():
    torch.manual_seed(0)
    yield
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def cosine(a, b):
    return nn.functional.cosine_similarity(a.float().flatten(), b.float().flatten(), dim=0).item()


@pytest.mark.parametrize("rows", [1, 13, 64, 255, 256])
@pytest.mark.parametrize("columns", [8960, 15360])
def test_few_rows_and_many_columns_with_a_bias(rows, columns):
    """cuBLAS refuses such products: a short prompt in HunyuanVideo's feed-forward layers."""
    linear = nn.Linear(columns, 1536, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(1, rows, columns, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        assert cosine(Fp8Linear.from_linear(linear, "channel")(x), linear(x)) > 0.998


@pytest.mark.parametrize("mode", ["channel", "tensor", "cast", "block"])
@pytest.mark.parametrize("bias", [True, False])
def test_fp8_products_are_close_to_the_dequantised_linear(mode, bias):
    linear = nn.Linear(512, 256, bias=bias, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    quantized = Fp8Linear.from_linear(linear, mode)
    weight = dequantize(quantized.weight, quantized.scale_weight, torch.bfloat16)
    x = torch.randn(3, 77, 512, device="cuda", dtype=torch.bfloat16)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = quantized(ours), nn.functional.linear(theirs, weight, linear.bias)
    upstream = torch.randn_like(expected)
    out.backward(upstream)
    expected.backward(upstream)
    assert out.shape == expected.shape and out.dtype == torch.bfloat16
    if mode == "block":  # never a real fp8 product: equal to rounding
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(ours.grad, theirs.grad)
    else:
        assert cosine(out, expected) > 0.998 and cosine(ours.grad, theirs.grad) > 0.998
        if has_fp8_products(torch.device("cuda")):
            assert not torch.equal(out, expected), "no fp8 product was made"


def test_fp8_with_odd_sizes_and_fp32_falls_back():
    for inputs_, outputs, dtype in ((100, 48, torch.bfloat16), (64, 50, torch.bfloat16), (64, 64, torch.float32)):
        linear = nn.Linear(inputs_, outputs, device="cuda", dtype=dtype).requires_grad_(False)
        quantized = Fp8Linear.from_linear(linear, "channel")
        x = torch.randn(5, inputs_, device="cuda", dtype=dtype)
        weight = dequantize(quantized.weight, quantized.scale_weight, dtype)
        torch.testing.assert_close(quantized(x), nn.functional.linear(x, weight, linear.bias))


def test_fp8_products_are_faster():
    if not has_fp8_products(torch.device("cuda")):
        pytest.skip("this GPU multiplies no fp8 matrices")
    linear = nn.Linear(5120, 13824, bias=False, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    channel, block = Fp8Linear.from_linear(linear, "channel"), Fp8Linear.from_linear(linear, "block")
    x = torch.randn(16384, 5120, device="cuda", dtype=torch.bfloat16)
    compiled = torch.compile(channel)
    with torch.no_grad():
        times = {
            name: seconds(lambda f=f: f(x))
            for name, f in {
                "bf16": linear,
                "row fp8": channel,
                "row fp8 compiled": compiled,
                "block fp8": block,
            }.items()
        }
    print({name: f"{value * 1e3:.2f} ms" for name, value in times.items()})
    assert times["row fp8 compiled"] < times["bf16"]


def seconds(function, repeats=10):
    for _ in range(3):
        function()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def build(width=256, count=8, *, fp8=None, dtype=torch.bfloat16):
    stack = Stack(count=count, width=width).to(dtype)
    if fp8:
        quantize_model(stack, wanted=lambda name: ".up" in name or ".down" in name, mode=fp8)
    return stack.adapt()


def build_on_gpu(count, width):
    """Large stacks: drawing their weights on the CPU would take longer than the test."""
    with torch.device("cuda"):
        return Stack(count=count, width=width).to(torch.bfloat16).adapt()


@pytest.mark.parametrize("fp8", [None, "block", "channel"])
@pytest.mark.parametrize("count, slots", [(8, 1), (8, 2), (5, 2), (8, 3)])
@pytest.mark.parametrize("wrap", ["none", "checkpoint", "offload"])
@pytest.mark.parametrize("pinned", [True, False])
def test_streaming_changes_no_bit(fp8, count, slots, wrap, pinned):
    def run(stack, stream):
        stack.enter.to("cuda")
        stack.adapters.to("cuda")
        if stream:
            stream_blocks(stack.blocks, count, device="cuda", slots=slots, pinned=pinned)
        else:
            stack.to("cuda")
        if wrap != "none":
            checkpoint_blocks(stack.blocks, offload=wrap == "offload", smallest_offload=0)
        return train_steps(stack, inputs(256, "cuda", torch.bfloat16), steps=3)

    for ours, theirs in zip(run(build(fp8=fp8), True), run(build(fp8=fp8), False), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_streaming_under_load_reads_no_half_copied_block(checkpointing):
    """Large blocks, short computing: every copy is late, and an unordered one would show as a wrong number."""

    def run(streamed):
        stack = build_on_gpu(12, 2048)
        if streamed:
            stream_blocks(stack.blocks, 12, device="cuda")
        if checkpointing:
            checkpoint_blocks(stack.blocks)
        return train_steps(stack, inputs(2048, "cuda", torch.bfloat16), steps=4)

    for ours, theirs in zip(run(True), run(False), strict=True):
        assert torch.equal(ours, theirs)


def test_streaming_hides_behind_computing_and_holds_two_blocks():
    width, tokens, count = 4096, 16384, 8

    def run(streamed):
        gc.collect()
        torch.cuda.empty_cache()
        start = torch.cuda.memory_allocated()
        stack = build_on_gpu(count, width)
        stream = stream_blocks(stack.blocks, count, device="cuda") if streamed else None
        torch.cuda.reset_peak_memory_stats()
        checkpoint_blocks(stack.blocks)
        x = torch.randn(1, tokens, width, device="cuda", dtype=torch.bfloat16)
        time_ = torch.randn(1, 2, width, device="cuda", dtype=torch.bfloat16)
        taken = seconds(lambda: stack(x, time_).float().square().mean().backward(), repeats=5)
        return taken, (torch.cuda.max_memory_allocated() - start) / MIB, stream

    resident_s, resident_mib, _ = run(False)
    streamed_s, streamed_mib, stream = run(True)
    block_mib = stream.host_bytes / count / MIB
    print(f"resident {resident_s:.4f} s {resident_mib:.0f} MiB, streamed {streamed_s:.4f} s {streamed_mib:.0f} MiB")
    assert stream.waits == 0
    assert resident_mib - streamed_mib > (count - 3) * block_mib
    assert streamed_s < 1.1 * resident_s


def test_offload_keeps_few_inputs_on_the_gpu():
    width, tokens, count = 1024, 16384, 16

    def peak(offload):
        gc.collect()
        torch.cuda.empty_cache()
        stack = build_on_gpu(count, width)
        checkpoint_blocks(stack.blocks, offload=offload)
        x = torch.randn(1, tokens, width, device="cuda", dtype=torch.bfloat16)
        time_ = torch.randn(1, 2, width, device="cuda", dtype=torch.bfloat16)
        torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            stack(x, time_).float().square().mean().backward()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / MIB

    kept, moved = peak(False), peak(True)
    one = tokens * width * 2 / MIB
    print(f"kept {kept:.0f} MiB, offloaded {moved:.0f} MiB, one input {one:.0f} MiB")
    assert kept - moved > (count - 6) * one


@pytest.mark.parametrize("fp8", [None, "channel"])
def test_compiled_streamed_and_checkpointed(fp8):
    def run(wrapped):
        torch._dynamo.reset()
        stack = build(fp8=fp8)
        stack.enter.to("cuda")
        stack.adapters.to("cuda")
        if wrapped:
            compile_blocks(stack.blocks, cache_size_limit=64)
            stream_blocks(stack.blocks, 8, device="cuda")
            checkpoint_blocks(stack.blocks, offload=True, smallest_offload=0)
        else:
            stack.to("cuda")
        return train_steps(stack, inputs(256, "cuda", torch.bfloat16), steps=1)

    for ours, theirs in zip(run(True), run(False), strict=True):
        assert cosine(ours, theirs) > 0.99


def test_host_memory_is_locked_and_exact():
    buffer = host_bytes(5 * MIB + 123, pinned=True, advice="Lower --x")
    assert buffer.is_pinned() and buffer.nbytes == 5 * MIB + 123
    view = buffer[:16]
    del buffer
    gc.collect()
    assert view.is_pinned(), "unlocked although a view is alive"
