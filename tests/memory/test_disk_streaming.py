"""Streamed blocks that wait on disk: the numbers of those in main memory, and nothing written that need not be."""

from __future__ import annotations

import gc
import os

import pytest
import torch

from engine.contract.errors import DiskError, WeightsError
from engine.memory import disk_loading, waiting
from engine.memory.checkpointing import checkpoint_blocks
from engine.memory.compile import compile_blocks
from engine.memory.disk_loading import LeaveOnDisk
from engine.memory.exchange import WeightSets
from engine.memory.fp8 import QuantizeOnLoad, quantize_model
from engine.memory.streaming import stream_blocks
from engine.parts.mapped_files import MappedFile, holder
from engine.parts.weights import load_into, open_weights, write_weights
from tests.memory.test_exchange import Model, Shelf, X
from tests.memory.test_streaming import assert_same, plain
from tests.memory.toy import Stack, inputs, train_steps

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSUBI_SCRATCH", str(tmp_path / "scratch"))


@pytest.fixture
def no_scratch(monkeypatch):
    def refuse(size):
        raise AssertionError("written although it is in a file already")

    for module in (waiting, disk_loading):
        monkeypatch.setattr(module, "Scratch", refuse)


def stream(stack, count=5, **how):
    return stream_blocks(stack.blocks, count, device="cpu", from_disk=True, **how)


def empty(width=16, count=5):
    with torch.device("meta"):
        return Stack(count, width)


def loaded(path, stack=None, *, inner=None, changed=(), dtype=torch.float32, file_dtype=torch.float32):
    """A stack from a file, all blocks on disk, and the transform that left them there."""
    given = stack or Stack()
    tensors = {name: value.to(file_dtype) for name, value in given.state_dict().items()}
    write_weights(path, tensors)
    width, sketch = given.enter.in_features, empty(given.enter.in_features).to(dtype)
    if isinstance(inner, QuantizeOnLoad):
        quantize_model(sketch, wanted=inner.names.__contains__, mode=inner.mode)
    left = LeaveOnDisk(sketch, sketch.blocks, inner, changed=changed, device=CPU)
    made = empty(width).to(dtype)
    load_into(
        made, open_weights(path, role="--dit"), rename=lambda name: name, device="cpu", dtype=dtype, transform=left
    )
    if isinstance(inner, QuantizeOnLoad):
        inner.install(made)
    return made, left


@pytest.mark.parametrize("count", [1, 4, 5])
@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("wrap", ["none", "checkpoint", "offload"])
def test_same_outputs_and_gradients(count, slots, wrap):
    stack = Stack().adapt()
    stream(stack, count, slots=slots)
    if wrap != "none":
        checkpoint_blocks(stack.blocks, offload=wrap == "offload", smallest_offload=0)
    assert_same(train_steps(stack, inputs(), steps=3), train_steps(Stack().adapt(), inputs(), steps=3))


@pytest.mark.usefixtures("no_scratch")
def test_what_is_used_as_it_is_stored_is_neither_read_nor_written(tmp_path, monkeypatch):
    path, reads = tmp_path / "dit.safetensors", []
    inner = MappedFile.fill
    monkeypatch.setattr(MappedFile, "fill", lambda *given: reads.append(given) or inner(*given))
    stack, left = loaded(path)
    written = path.read_bytes()
    for parameter in stack.blocks.parameters():
        assert holder(parameter)[0].stream.name == path
    assert holder(stack.enter.weight) is None and left.scratch_bytes == 0 < left.mapped_bytes and not reads
    stream(stack.adapt())
    checkpoint_blocks(stack.blocks)
    assert_same(train_steps(stack, inputs()), plain())
    assert path.read_bytes() == written


def test_what_was_changed_is_in_a_scratch_file_and_only_that(tmp_path):
    changed = "blocks.2.up.weight"

    def merge(name, tensor):
        return tensor + 1 if name == changed else tensor

    stack, left = loaded(tmp_path / "dit.safetensors", inner=merge, changed={changed})
    elsewhere = [
        name for name, p in stack.blocks.named_parameters("blocks") if "dit" not in str(holder(p)[0].stream.name)
    ]
    assert elsewhere == [changed] and left.scratch_bytes == 16 * 32 * 4
    wanted = Stack()
    wanted.blocks[2].up.weight.data += 1
    stream(stack)
    with torch.no_grad():
        assert torch.equal(stack(*inputs()), wanted(*inputs()))


def test_a_cast_is_a_change(tmp_path):
    stack, left = loaded(tmp_path / "dit.safetensors", file_dtype=torch.float64)
    assert left.mapped_bytes == 0 and all(holder(p) is not None for p in stack.blocks.parameters())
    stream(stack.adapt())
    assert_same(train_steps(stack, inputs()), plain())


@pytest.mark.parametrize("mode", ["channel", "block"])
def test_codes_and_scales_are_on_disk(tmp_path, mode):
    def quantized(name):
        return ".up" in name or ".down" in name

    inner = QuantizeOnLoad(empty(64), wanted=quantized, mode=mode)
    stack, left = loaded(tmp_path / "dit.safetensors", Stack(width=64), inner=inner, changed=inner.changed)
    assert all(holder(parameter) is not None for parameter in stack.blocks.parameters())
    codes = sum(p.nbytes for block in stack.blocks for p in (block.up.weight, block.down.weight))
    assert codes < left.scratch_bytes < 1.2 * codes
    wanted = Stack(width=64)
    quantize_model(wanted, wanted=quantized, mode=mode)
    stream(stack.adapt())
    assert_same(train_steps(stack, inputs(64)), train_steps(wanted.adapt(), inputs(64)))


def test_the_next_block_is_read_ahead_forward_and_backward():
    stack = Stack(count=6).adapt()
    found = stream(stack, 6, slots=2)
    checkpoint_blocks(stack.blocks)
    train_steps(stack, inputs(), steps=3)
    assert found.waits == 0 and found.copies == 2 + 3 * 8
    assert found.host_bytes == 2 * found._kept[0].size, "a buffer for each slot"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_sampling_between_training_steps(mode):
    stack, reference, found, expected = Stack().adapt(), Stack().adapt(), [], []
    stream(stack, 4)
    checkpoint_blocks(stack.blocks)
    for _ in range(2):
        with mode():
            assert torch.equal(stack(*inputs()).clone(), reference(*inputs()))
        found += train_steps(stack, inputs(), steps=1)
        expected += train_steps(reference, inputs(), steps=1)
    assert_same(found, expected)


def test_any_order_of_blocks_is_right():
    stack, reference = Stack(count=6), Stack(count=6)
    stream(stack, 6, slots=2)
    x, time, _ = inputs()
    with torch.no_grad():
        for index in (5, 0, 3, 3, 1, 4, 2, 5, 1):
            assert torch.equal(stack.blocks[index](x, time), reference.blocks[index](x, time))


def test_with_compiled_blocks_and_checkpoints():
    stack = Stack().adapt()
    compile_blocks(stack.blocks, backend="aot_eager")
    stream(stack)
    checkpoint_blocks(stack.blocks)
    for ours, theirs in zip(train_steps(stack, inputs()), plain(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("keep", [True, False])
def test_sets_of_weights_take_turns(keep):
    model, shelf = Model(0), Shelf()
    wanted = [Model(number)(X) for number in range(3)]
    found = stream_blocks(model.blocks, 3, device="cpu", from_disk=True)
    sets = WeightSets(model, model.blocks, 0, shelf, stream=found, keep=keep)
    for number in (0, 1, 0, 2, 1, 2, 0):
        sets.use(number)
        assert torch.equal(model(X), wanted[number]), number


def test_at_rest_and_afterwards_all_is_as_before():
    stack, given = Stack().adapt(), inputs()
    found = stream(stack, 4, slots=2)
    with torch.no_grad():
        before = stack(*given)
        for _ in range(2):
            found.rest()
            assert [slot.untyped_storage().nbytes() for slot in found._slots] == [0, 0]
            found.wake()
            assert_same([stack(*given)], [before])


@pytest.mark.skipif(os.name != "posix", reason="Windows does not let a mapped file be cut")
def test_a_file_that_is_cut_while_it_is_used_ends_the_step_with_one_clear_error(tmp_path):
    path = tmp_path / "dit.safetensors"
    stack, _ = loaded(path)
    stream(stack, slots=1)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(WeightsError, match="ended while it was being read"), torch.no_grad():
        for _ in range(2):
            stack(*inputs())
    with pytest.raises(WeightsError), torch.no_grad():
        stack(*inputs())


def test_a_disk_that_fails_is_told_where_the_block_is_due(monkeypatch):
    stack = Stack().adapt()
    stream(stack, slots=2)
    out = stack(*inputs())

    def broken(self, view, start):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(MappedFile, "fill", broken)
    with pytest.raises(DiskError, match="^a scratch file in .* could not be read: Input/output error"):
        out.sum().backward()


def test_the_thread_and_the_scratch_file_end_with_the_model(tmp_path):
    stack = Stack().adapt()
    found = stream(stack)
    file = holder(found._kept[0].tensors[0])[0].stream
    train_steps(stack, inputs())
    threads = [*found.home._order._threads, *found.home._readers._threads]
    assert len(threads) > 1 and all(thread.is_alive() for thread in threads) and not file.closed
    del stack, found
    gc.collect()
    for thread in threads:
        thread.join(timeout=10)
        assert not thread.is_alive()
    assert file.closed and not list((tmp_path / "scratch").iterdir())
