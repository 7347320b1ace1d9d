from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from engine.memory.checkpointing import checkpoint_blocks
from engine.memory.streaming import stream_blocks
from tests.memory.toy import Stack, inputs, train_steps


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("streamed", [0, 5])
def test_same_outputs_and_gradients(offload, streamed):
    stack = Stack().adapt()
    if streamed:
        stream_blocks(stack.blocks, streamed, device="cpu")
    checkpoint_blocks(stack.blocks, offload=offload, smallest_offload=0)
    for ours, theirs in zip(train_steps(stack, inputs()), train_steps(Stack().adapt(), inputs()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def count_saved(stack):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.shape) or tensor, lambda t: t):
        stack(*inputs())
    return saved


def test_only_inputs_are_kept():
    """x, time and text of each block, and the checkpoint's empty marker; nothing else."""
    plain, checkpointed = Stack().adapt(), Stack().adapt()
    checkpoint_blocks(checkpointed.blocks)
    assert len(count_saved(checkpointed)) <= 5 * 4 + 4 < len(count_saved(plain))


def test_the_forward_runs_twice_with_gradients_and_once_without():
    calls = []
    stack = Stack(count=1).adapt()
    inner = stack.blocks[0].forward
    stack.blocks[0].forward = lambda *args, **kwargs: calls.append(1) or inner(*args, **kwargs)
    checkpoint_blocks(stack.blocks)
    with torch.no_grad():
        stack(*inputs())
    assert len(calls) == 1
    stack(*inputs()).sum().backward()
    assert len(calls) == 3


def test_dropout_is_the_same_in_the_recomputation():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return nn.functional.dropout(x * self.scale, 0.5) ** 2

    def grads(wrap):
        torch.manual_seed(0)
        blocks = nn.ModuleList([Dropping() for _ in range(3)])
        if wrap:
            checkpoint_blocks(blocks)
        x = torch.ones(100)
        for block in blocks:
            x = block(x)
        x.sum().backward()
        return [block.scale.grad for block in blocks]

    torch.testing.assert_close(grads(True), grads(False))


def test_offload_moves_the_tokens_and_nothing_shared():
    stack = Stack().adapt()
    store = checkpoint_blocks(stack.blocks, offload=True, smallest_offload=0)
    stack(*inputs()).sum().backward()
    # the first block's input carries no gradient; the others' do; time and text never
    assert store.moved == 4


def test_small_inputs_stay():
    stack = Stack().adapt()
    store = checkpoint_blocks(stack.blocks, offload=True)
    stack(*inputs()).sum().backward()
    assert store.moved == 0


def test_host_buffers_are_used_again():
    stack = Stack().adapt()
    store = checkpoint_blocks(stack.blocks, offload=True, smallest_offload=0)
    for _ in range(3):
        train_steps(stack, inputs(), steps=1)
        gc.collect()
    assert store.moved == 12
    assert sum(len(buffers) for buffers in store._free.values()) == 4


def test_an_abandoned_forward_costs_nothing_later():
    stack, reference = Stack().adapt(), Stack().adapt()
    checkpoint_blocks(stack.blocks, offload=True, smallest_offload=0)
    stack(*inputs())  # never followed by a backward pass
    for ours, theirs in zip(train_steps(stack, inputs()), train_steps(reference, inputs()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_backward_twice():
    stack = Stack().adapt()
    checkpoint_blocks(stack.blocks, offload=True, smallest_offload=0)
    loss = stack(*inputs()).square().sum()
    loss.backward(retain_graph=True)
    once = stack.adapters[0].grad.clone()
    loss.backward()
    torch.testing.assert_close(stack.adapters[0].grad, 2 * once)


def test_twice_is_refused():
    stack = Stack()
    checkpoint_blocks(stack.blocks)
    with pytest.raises(ValueError, match="already"):
        checkpoint_blocks(stack.blocks)
