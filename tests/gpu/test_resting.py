"""Models at rest: what they held of the GPU is free, and awake they are what they were, bit for bit."""

from __future__ import annotations

import gc

import pytest
import torch

from engine.memory.compile import compile_blocks
from engine.memory.fp8 import quantize_model
from engine.memory.resting import Resting, weights_in
from engine.memory.streaming import stream_blocks
from tests.memory.toy import Stack, inputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]


@pytest.mark.parametrize("streamed", [0, 3])
@pytest.mark.parametrize("how", ["plain", "fp8", "compiled"])
def test_rest_and_wake(streamed: int, how: str) -> None:
    stack = Stack().requires_grad_(False).to("cpu" if streamed else "cuda")
    given = [tensor.cuda() for tensor in inputs()]
    if how == "fp8":
        quantize_model(stack, wanted=lambda name: name.startswith("blocks."), mode="block")
    if how == "compiled":
        compile_blocks(stack.blocks, backend="eager")
    stream = stream_blocks(stack.blocks, streamed, device="cuda") if streamed else None
    stack.to("cuda") if stream is None else [child.cuda() for child in stack.children() if child is not stack.blocks]
    with torch.no_grad():
        before = stack(*given)
        held = torch.cuda.memory_allocated()
        own = sum(tensor.nbytes for tensor in weights_in(stack) if tensor.is_cuda)
        resting = Resting(weights_in(stack), stream, say=lambda event: None, label="toy")
        gc.collect()
        assert own and torch.cuda.memory_allocated() <= held - own
        assert not any(tensor.is_cuda for tensor in weights_in(stack))
        resting.wake(lambda event: None, "toy")
        assert torch.equal(stack(*given), before)
