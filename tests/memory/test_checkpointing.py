from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from engine.contract.errors import OptionError
from engine.memory import checkpointing
from engine.memory.checkpointing import Keeping, checkpoint_blocks
from engine.memory.compile import compile_blocks
from engine.memory.recomputing import tell_what_learns
from engine.memory.streaming import stream_blocks
from engine.ops import kept_attention
from engine.ops.attention import attention
from tests.memory.toy import Stack, inputs, train_steps


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("streamed", [0, 5])
@pytest.mark.parametrize("count", [None, 2])
def test_same_outputs_and_gradients(offload, streamed, count):
    stack = Stack().adapt()
    if streamed:
        stream_blocks(stack.blocks, streamed, device="cpu")
    checkpoint_blocks(stack.blocks, count=count, offload=offload, smallest_offload=0)
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


def test_the_last_blocks_are_left_out_where_some_are():
    runs = [0] * 5
    stack = Stack().adapt()
    for number, block in enumerate(stack.blocks):

        def counting(*args, inner=block.forward, number=number, **kwargs):
            runs[number] += 1
            return inner(*args, **kwargs)

        block.forward = counting
    checkpoint_blocks(stack.blocks, count=2)
    stack(*inputs()).sum().backward()
    assert runs == [2, 2, 1, 1, 1]


@pytest.mark.parametrize("count", [0, 6])
def test_more_blocks_than_there_are_is_an_error(count):
    with pytest.raises(OptionError, match=f"{count} blocks cannot be checkpointed: this model has 5"):
        checkpoint_blocks(Stack().blocks, count=count)


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


@pytest.mark.parametrize("told", [False, True])
def test_what_waits_in_main_memory_is_fetched_once(monkeypatch, told):
    """In the order of its use, the block before's beside it."""
    copies = []
    copy = checkpointing._Lane.copy

    def watched(lane, target, source):
        copies.append(target)
        copy(lane, target, source)

    monkeypatch.setattr(checkpointing._Lane, "copy", watched)
    blocks = nn.ModuleList(Attending() for _ in range(4))
    if told:
        tell_what_learns(blocks, lambda block: list(block.parameters()))
    compile_blocks(blocks, backend="aot_eager")
    store = checkpoint_blocks(blocks, offload=True, smallest_offload=0, keep_from=40)
    x = torch.randn(2, 40, 32, requires_grad=True)
    for block in blocks:
        x = block(x)
    x.sum().backward()
    assert store.moved == 12 and len(copies) == 2 * store.moved


@pytest.mark.parametrize("told", [False, True])
def test_the_same_places_serve_all_blocks_and_are_gone_afterwards(monkeypatch, told):
    """Two for each tensor of a block: while one block is at work that of the block before it arrives."""
    lent = []
    take = checkpointing.Offload.take

    def watched(store, kept):
        tensor = take(store, kept)
        lent.append((tensor.data_ptr(), tensor.nbytes))
        return tensor

    monkeypatch.setattr(checkpointing.Offload, "take", watched)
    blocks = nn.ModuleList(Attending() for _ in range(6))
    if told:
        tell_what_learns(blocks, lambda block: list(block.parameters()))
    store = checkpoint_blocks(blocks, offload=True, smallest_offload=0, keep_from=40)
    for length in (40, 48, 40):  # as buckets change
        lent.clear()
        x = torch.randn(2, length, 32, requires_grad=True)
        for block in blocks:
            x = block(x)
        x.sum().backward()
        tokens = {place for place, size in lent if size == 4 * 2 * length * 32}
        assert len(lent) == 18 and len(tokens) == 4  # a block's input, and what attention gave
        assert not store._places and not store._lent


def test_a_place_in_which_something_else_lies_is_not_used_again(monkeypatch):
    """Compiled code may write a result over what it has no use for any more."""
    taken = []
    take = checkpointing.Offload.take
    monkeypatch.setattr(checkpointing.Offload, "take", lambda store, kept: taken.append(take(store, kept)) or taken[-1])
    blocks = nn.ModuleList(Attending() for _ in range(6))
    tell_what_learns(blocks, lambda block: list(block.parameters()))
    checkpoint_blocks(blocks, offload=True, smallest_offload=0, keep_from=40)
    x = torch.randn(2, 40, 32, requires_grad=True)
    for block in blocks:
        x = block(x)
    x.sum().backward()
    assert len({tensor.data_ptr() for tensor in taken}) == len(taken) == 18


@pytest.mark.parametrize("sizes", [(40, 40, 48, 48, 48), (48, 48, 48, 40, 40)])
def test_no_place_lies_idle_between_blocks(monkeypatch, sizes):
    """What double-stream blocks see is smaller than what single-stream ones do."""
    idle = []
    take = checkpointing.Offload.take

    def watched(store, kept):
        tensor = take(store, kept)
        rest = store._due_after(kept)
        if all(parked.run != kept.run for parked in rest):
            idle.append(sum(map(len, store._places.values())))
        return tensor

    monkeypatch.setattr(checkpointing.Offload, "take", watched)
    blocks = nn.ModuleList(Attending() for _ in sizes)
    tell_what_learns(blocks, lambda block: list(block.parameters()))
    checkpoint_blocks(blocks, offload=True, smallest_offload=0, keep_from=40)
    x = torch.randn(2, sizes[0], 32, requires_grad=True)
    for block, length in zip(blocks, sizes, strict=True):
        x = block(torch.nn.functional.pad(x, (0, 0, 0, length - x.shape[1])))
    x.sum().backward()
    assert len(idle) == len(sizes) and not any(idle)


def test_no_copy_keeps_the_next_one_of_its_kind_waiting(monkeypatch):
    """What attention gave and its statistics go together, as do a block's two inputs: computing waits for older copies
    alone. A step of HunyuanVideo lost 2 ms in each block."""
    told = []
    copy, settle = checkpointing._Lane.copy, checkpointing._Lane.settle
    watched = {
        "copy": lambda lane, target, source: (told.append(source.shape[1]), copy(lane, target, source)),
        "settle": lambda lane: (told.append("wait"), settle(lane)),
    }
    for name, call in watched.items():
        monkeypatch.setattr(checkpointing._Lane, name, call)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Attending(), Attending()

        def forward(self, x_BLD, text_BMD):
            return self.first(x_BLD), self.second(text_BMD)

    blocks = nn.ModuleList([Two()])
    tell_what_learns(blocks, lambda block: list(block.parameters()))
    compile_blocks(blocks, backend="aot_eager")
    checkpoint_blocks(blocks, offload=True, smallest_offload=0, keep_from=40)
    blocks[0](torch.randn(2, 40, 32, requires_grad=True), torch.randn(2, 39, 32, requires_grad=True))
    heads = 2  # statistics are [B, H, L]
    assert told == ["wait", 40, heads, "wait", 40, 39]


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


class Attending(nn.Module):
    """A block whose attention counts: three linear layers would hide what is run again."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x_BLD):
        q_BLHD, k_BLHD, v_BLHD = self.qkv(x_BLD).unflatten(-1, (3, 2, 16)).unbind(2)
        return x_BLD + self.out(attention(q_BLHD, k_BLHD, v_BLHD).flatten(2))


def attending(monkeypatch, *, compiled=False, checkpointed=True, **how):
    """(output and gradients, how often the kernel ran) of three such blocks on 40 tokens."""
    runs = []
    kernel = kept_attention._cpu_forward
    monkeypatch.setattr(kept_attention, "_cpu_forward", lambda *parts: runs.append(1) or kernel(*parts))
    torch.manual_seed(0)
    blocks = nn.ModuleList(Attending() for _ in range(3))
    if compiled:
        compile_blocks(blocks, backend="aot_eager")
    if checkpointed:
        checkpoint_blocks(blocks, smallest_offload=0, **how)
    tokens = x = torch.randn(2, 40, 32, requires_grad=True)
    for block in blocks:
        x = block(x)
    x.square().mean().backward()
    monkeypatch.undo()
    return [x.detach(), tokens.grad, *(parameter.grad for parameter in blocks.parameters())], len(runs)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("offload", [False, True])
def test_kept_attention_runs_once_and_changes_nothing(monkeypatch, compiled, offload):
    plain, _ = attending(monkeypatch, checkpointed=False)
    kept, runs = attending(monkeypatch, compiled=compiled, offload=offload, keep_from=40)
    assert runs == 3
    for ours, theirs in zip(kept, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)


@pytest.mark.parametrize("compiled", [False, True])
def test_blocks_without_a_checkpoint_have_nothing_to_put_on_a_shelf(monkeypatch, compiled):
    plain, _ = attending(monkeypatch, checkpointed=False)
    some, runs = attending(monkeypatch, compiled=compiled, count=2, keep_from=40)
    assert runs == 2
    for ours, theirs in zip(some, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)


def test_attention_to_few_keys_or_by_wish_is_computed_again(monkeypatch):
    for how in ({"keep_from": 41}, {"keep_from": 1, "attention": "recompute"}):
        _, runs = attending(monkeypatch, **how)
        assert runs == 0, "the kept operator ran although nothing is kept"


@pytest.mark.parametrize(("free", "expected"), [(None, True), (100, False), (46, False), (47, True), (1000, True)])
def test_attention_is_kept_where_inputs_results_and_one_block_fit(monkeypatch, free, expected):
    """3 blocks: 2·3 + 40 sizes of the tokens have to be free; `free` counts them."""
    tokens = torch.zeros(1, 10, 8)
    room = None if free is None else (free - 1) * tokens.nbytes
    monkeypatch.setattr(checkpointing, "free_bytes", lambda device: room)
    if free == 100:
        tokens = torch.zeros(1, 1000, 8)
    assert Keeping("auto", blocks=3, offloaded=False)([torch.zeros(2), tokens]) is expected


def test_the_decision_is_made_once_for_a_size(monkeypatch):
    asked = []
    monkeypatch.setattr(checkpointing, "free_bytes", lambda device: asked.append(1))
    keeps = Keeping("auto", blocks=3, offloaded=False)
    for length in (5, 5, 9, 5):
        keeps([torch.zeros(1, length, 8)])
    assert len(asked) == 2
