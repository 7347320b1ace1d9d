from __future__ import annotations

import pytest
import torch

from engine.contract.errors import OptionError
from engine.memory.checkpointing import checkpoint_blocks
from engine.memory.compile import compile_blocks
from engine.memory.fp8 import quantize_model
from engine.memory.streaming import spread, stream_blocks
from tests.memory.toy import Stack, inputs, train_steps


def plain():
    return train_steps(Stack().adapt(), inputs())


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("count", [1, 2, 4, 5])
@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_same_outputs_and_gradients(count, slots, checkpointing):
    stack = Stack().adapt()
    stream = stream_blocks(stack.blocks, count, device="cpu", slots=slots)
    if checkpointing:
        checkpoint_blocks(stack.blocks)
    assert_same(train_steps(stack, inputs()), plain())
    assert len(stream.indices) == count


def test_weights_really_leave_the_device():
    """After a forward only the slots' blocks may lie in slots; everything else lies in main memory."""
    stack = Stack().adapt()
    weights = {id(block): block.up.weight.clone() for block in stack.blocks}
    stream = stream_blocks(stack.blocks, 5, device="cpu", slots=2)
    with torch.no_grad():
        stack(*inputs())
    slots = {slot.untyped_storage().data_ptr() for slot in stream._slots}
    inside = [block.up.weight.untyped_storage().data_ptr() in slots for block in stack.blocks]
    assert sum(inside) == 2
    for slot in stream._slots:
        slot.fill_(255)  # NaN: whoever used an old slot's content would show it
    outside = [block for block, is_inside in zip(stack.blocks, inside, strict=True) if not is_inside]
    for block in outside:
        assert torch.equal(block.up.weight, weights[id(block)])


def test_a_weight_saved_for_backward_is_fetched_again():
    """Autograd keeps views of the weights; without a hook the backward pass would read another block's."""
    stack = Stack().adapt()
    stream_blocks(stack.blocks, 5, device="cpu", slots=1)
    x, time, text = inputs()
    x.requires_grad_()
    stack(x, time, text).square().sum().backward()
    theirs, other = Stack().adapt(), inputs()
    other[0].requires_grad_()
    theirs(*other).square().sum().backward()
    torch.testing.assert_close(x.grad, other[0].grad, rtol=0, atol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_run_of_a_block_finds_its_weights_in_a_slot(checkpointing):
    """On a CPU a block would also run from main memory; on a GPU it would not."""
    stack = Stack().adapt()
    seen = []
    for block in stack.blocks:
        inner = block.forward

        def watched(*args, _block=block, _inner=inner, **kwargs):
            places = {parameter.untyped_storage().data_ptr() for parameter in _block.parameters()}
            seen.append(len(places) == 1 and places <= slots)
            return _inner(*args, **kwargs)

        block.forward = watched
    stream = stream_blocks(stack.blocks, 5, device="cpu", slots=2)
    slots = {slot.untyped_storage().data_ptr() for slot in stream._slots}
    if checkpointing:
        checkpoint_blocks(stack.blocks)
    train_steps(stack, inputs(), steps=2)
    assert all(seen) and len(seen) == (20 if checkpointing else 10)


def test_the_next_block_is_on_its_way_forward_and_backward():
    stack = Stack(count=6).adapt()
    stream = stream_blocks(stack.blocks, 6, device="cpu", slots=2)
    checkpoint_blocks(stack.blocks)
    train_steps(stack, inputs(), steps=3)
    assert stream.waits == 0
    # the first two are there; a step then brings 4 forward and 4 backward
    assert stream.copies == 2 + 3 * 8


def test_sampling_wraps_around_and_waits_for_nothing():
    stack = Stack(count=6)
    stream = stream_blocks(stack.blocks, 6, device="cpu", slots=2)
    with torch.no_grad():
        for _ in range(3):
            stack(*inputs())
    assert stream.waits == 0 and stream.copies == 2 + 3 * 6 - 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_sampling_between_training_steps(mode):
    stack = Stack().adapt()
    stream_blocks(stack.blocks, 4, device="cpu")
    checkpoint_blocks(stack.blocks)
    reference, expected = Stack().adapt(), []
    found = []
    for _ in range(2):
        with mode():
            sampled = stack(*inputs())
        with torch.no_grad():
            torch.testing.assert_close(sampled.clone(), reference(*inputs()), rtol=0, atol=0)
        found += train_steps(stack, inputs(), steps=1)
        expected += train_steps(reference, inputs(), steps=1)
    assert_same(found, expected)


def test_any_order_of_blocks_is_right():
    stack = Stack(count=6)
    reference = Stack(count=6)
    stream_blocks(stack.blocks, 6, device="cpu", slots=2)
    x, time, _ = inputs()
    with torch.no_grad():
        for index in (5, 0, 3, 3, 1, 4, 2):
            assert torch.equal(stack.blocks[index](x, time), reference.blocks[index](x, time))


def test_a_failed_forward_leaves_the_hooks_in_order():
    stack = Stack().adapt()
    stream_blocks(stack.blocks, 5, device="cpu")
    with pytest.raises(RuntimeError):
        stack(torch.zeros(1, 7, 16), torch.zeros(3, 9, 9))
    assert_same(train_steps(stack, inputs()), plain())


def test_with_fp8_weights():
    def build():
        stack = Stack(width=64)
        quantize_model(stack, wanted=lambda name: ".up" in name or ".down" in name)
        return stack.adapt()

    streamed = build()
    stream = stream_blocks(streamed.blocks, 5, device="cpu", slots=2)
    assert_same(train_steps(streamed, inputs(64)), train_steps(build(), inputs(64)))
    in_bf16 = sum(parameter.numel() * 2 for parameter in Stack(width=64).blocks.parameters())
    assert stream.host_bytes < 0.7 * in_bf16


def test_with_compiled_blocks_and_checkpoints():
    stack = Stack().adapt()
    compile_blocks(stack.blocks, backend="aot_eager")
    stream_blocks(stack.blocks, 5, device="cpu")
    checkpoint_blocks(stack.blocks)
    for ours, theirs in zip(train_steps(stack, inputs()), plain(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_with_compiled_blocks_alone():
    stack = Stack(count=3).adapt()
    compile_blocks(stack.blocks, backend="aot_eager")
    stream_blocks(stack.blocks, 3, device="cpu", slots=1)
    for ours, theirs in zip(train_steps(stack, inputs()), train_steps(Stack(count=3).adapt(), inputs()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_trainable_parameters_of_a_block_stay():
    stack = Stack().adapt()
    stack.blocks[2].norm.weight.requires_grad_()
    before = stack.blocks[2].norm.weight.data_ptr()
    stream_blocks(stack.blocks, 5, device="cpu")
    assert stack.blocks[2].norm.weight.data_ptr() == before
    stack(*inputs()).sum().backward()
    assert stack.blocks[2].norm.weight.grad is not None


def test_state_dict_is_unchanged():
    stack, reference = Stack(), Stack()
    stream_blocks(stack.blocks, 3, device="cpu")
    stack(*inputs())
    ours, theirs = stack.state_dict(), reference.state_dict()
    assert list(ours) == list(theirs)
    for name in ours:
        assert torch.equal(ours[name], theirs[name])


@pytest.mark.parametrize("count, total", [(0, 5), (1, 5), (2, 5), (4, 5), (5, 5), (39, 40), (20, 40), (7, 60)])
def test_streamed_blocks_are_spread(count, total):
    chosen = spread(count, total)
    assert len(set(chosen)) == count and chosen == sorted(chosen) and all(0 <= index < total for index in chosen)
    gaps = [b - a for a, b in zip(chosen, chosen[1:])]  # noqa: B905, RUF007
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_no_block_at_all():
    stack = Stack().adapt()
    stream = stream_blocks(stack.blocks, 0, device="cpu")
    assert stream.indices == [] and stream.device_bytes == 0
    assert_same(train_steps(stack, inputs()), plain())


@pytest.mark.parametrize("count", [6, -1])
def test_too_many_blocks(count):
    with pytest.raises(OptionError) as caught:
        stream_blocks(Stack().blocks, count, device="cpu")
    assert "--blocks_to_swap" in caught.value.hint and "5" in caught.value.hint


def test_no_slots():
    with pytest.raises(OptionError, match="need a buffer, not 0"):
        stream_blocks(Stack().blocks, 2, device="cpu", slots=0)


def test_wrong_use_is_noticed():
    stack = Stack()
    checkpoint_blocks(stack.blocks)
    with pytest.raises(ValueError, match="before checkpoint_blocks"):
        stream_blocks(stack.blocks, 2, device="cpu")
    with pytest.raises(ValueError, match="frozen"):
        stream_blocks(Stack().blocks.requires_grad_(), 2, device="cpu")
    with torch.device("meta"):
        empty = Stack()
    with pytest.raises(ValueError, match="meta"):
        stream_blocks(empty.blocks, 2, device="cpu")
    twice = Stack()
    stream_blocks(twice.blocks, 5, device="cpu")
    with pytest.raises(ValueError, match="already"):
        stream_blocks(twice.blocks, 5, device="cpu")


def test_graph_recording_compilation_is_refused():
    stack = Stack()
    compile_blocks(stack.blocks, mode="reduce-overhead")
    with pytest.raises(OptionError, match="CUDA graphs"):
        stream_blocks(stack.blocks, 2, device="cpu")


def test_at_rest_the_slots_hold_nothing_and_afterwards_all_is_as_before():
    stack, given = Stack().adapt(), inputs()
    stream = stream_blocks(stack.blocks, 4, device="cpu", slots=2)
    with torch.no_grad():
        before, host = stack(*given), stream.host_bytes
        for _ in range(2):
            stream.rest()
            assert [slot.untyped_storage().nbytes() for slot in stream._slots] == [0, 0]
            assert stream.host_bytes == host
            stream.wake()
            assert_same([stack(*given)], [before])
