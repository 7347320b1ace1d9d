"""What of `engine/memory/sharing.py` only a CUDA GPU can show: gathering beside computing, in the right order.

With one process, whose part is the whole; several over NCCL are `python -m tests.gpu.several_processes`.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from engine.memory.checkpointing import checkpoint_blocks
from engine.memory.fp8 import quantize_model
from engine.memory.sharing import SharedBlocks, Shares, share_blocks
from tests.memory.toy import Stack, inputs, train_steps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]


class Alone:
    """A company of one; what it gathers is late, so that whoever does not wait for it is found out."""

    number, count = 0, 1

    def gather(self, whole: Tensor, part: Tensor) -> None:
        torch.cuda._sleep(1_000_000)
        whole.copy_(part)

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        return


def shared(stack: Stack, *, slots: int = 2) -> SharedBlocks:
    """Share out the blocks of a stack that is on the GPU already."""
    shares = Shares(Alone(), device=torch.device("cuda"))
    shares.plan(stack, stack.blocks)
    for name, parameter in stack.blocks.named_parameters():
        parameter.data = shares.take(f"blocks.{name}", parameter.data)
    return share_blocks(stack.blocks, shares, slots=slots)


def on_gpu(count: int, width: int, *, fp8: bool = False) -> Stack:
    with torch.device("cuda"):
        stack = Stack(count=count, width=width).to(torch.bfloat16)
        if fp8:
            quantize_model(stack, wanted=lambda name: ".up" in name or ".down" in name, mode="channel")
        return stack.adapt()


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("width", [256, 2048])
def test_sharing_out_changes_no_bit(fp8, slots, checkpointing, width):
    def run(as_shares: bool) -> list[Tensor]:
        stack = on_gpu(8, width, fp8=fp8)
        if as_shares:
            shared(stack, slots=slots)
        if checkpointing:
            checkpoint_blocks(stack.blocks)
        return train_steps(stack, inputs(width, "cuda", torch.bfloat16), steps=3)

    for ours, theirs in zip(run(True), run(False), strict=True):
        assert torch.equal(ours, theirs)


def test_led_or_not_a_sample_is_the_same():
    stack, plain = on_gpu(8, 1024), on_gpu(8, 1024)
    blocks = shared(stack)
    values = inputs(1024, "cuda", torch.bfloat16)
    with torch.inference_mode():
        expected = plain(*values)
        assert torch.equal(stack(*values), expected)
        with blocks.led():
            assert torch.equal(stack(*values), expected)
    for ours, theirs in zip(train_steps(stack, values), train_steps(plain, values), strict=True):
        assert torch.equal(ours, theirs)


def test_the_whole_weights_are_let_go():
    gc.collect()
    before = torch.cuda.memory_allocated()
    stack = on_gpu(8, 2048)
    blocks = shared(stack)
    gc.collect()
    parts = sum(part.nbytes for part in blocks._parts)
    rest = torch.cuda.memory_allocated() - before - parts - blocks.device_bytes
    assert rest < blocks.device_bytes / 2, "the adapters, and what lies outside of the blocks"
