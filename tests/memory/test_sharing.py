"""A base shared out over several processes (threads here) computes what a whole one does, bit for bit."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.contract.errors import OptionError
from engine.memory.checkpointing import checkpoint_blocks
from engine.memory.fp8 import QuantizeOnLoad, quantize_model
from engine.memory.sharing import SharedBlocks, ShareOnLoad, Shares, share_blocks
from engine.memory.slots import COMPILED_WITH_GRAPHS
from engine.ops import kept_attention
from engine.parts.weights import WeightFile, load_into, open_weights, write_weights
from tests.memory.company import Member, together
from tests.memory.toy import Stack, inputs, train_steps

CPU = torch.device("cpu")
SEEDING = threading.Lock()  # threads have one source of random numbers


@pytest.fixture(autouse=True)
def no_shelf_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process has one open shelf. Threads leave each other's open."""
    monkeypatch.setattr(kept_attention, "_open_shelf", None)
    monkeypatch.setattr(kept_attention, "_keep_from", None)


def is_large(name: str) -> bool:
    return ".up" in name or ".down" in name


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "stack.safetensors"
    stack = Stack(width=64)
    write_weights(path, {name: value for name, value in stack.state_dict().items() if "table" not in name})
    return path


def empty(dtype: torch.dtype) -> Stack:
    """The stack without weights. Its table is no part of the file."""
    with torch.device("meta"):
        stack = Stack(width=64).to(dtype)
    for block in stack.blocks:
        del block.table
        block.table = torch.linspace(0.5, 1.5, 64, dtype=dtype)
    return stack


def loaded(
    file: Path, member: Member | None, *, fp8: str = "", dtype: torch.dtype = torch.float32, inner: Any = None
) -> tuple[Stack, Shares | None]:
    """The stack in the file: whole, or a member's part of it."""
    model, shares = empty(dtype), None
    quantizer = QuantizeOnLoad(model, wanted=is_large, mode=fp8) if fp8 else None
    transform = quantizer or inner
    if member is not None:
        bare, shares = empty(dtype), Shares(member, device=CPU)
        if fp8:
            quantize_model(bare, wanted=is_large, mode=fp8)
        shares.plan(bare, bare.blocks)
        transform = ShareOnLoad(shares, transform)
    weights = open_weights(file, role="--dit")
    load_into(model, weights, rename=lambda name: name, device="cpu", dtype=dtype, transform=transform)
    if quantizer is not None:
        quantizer.install(model)
    return model.requires_grad_(False), shares


def shared(
    file: Path, member: Member, *, slots: int = 2, checkpointing: bool = True, **how
) -> tuple[Stack, SharedBlocks]:
    with SEEDING:
        stack, shares = loaded(file, member, **how)
        stack.adapt()
    blocks = share_blocks(stack.blocks, shares, slots=slots)
    if checkpointing:
        checkpoint_blocks(stack.blocks)
    return stack, blocks


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_same_outputs_and_gradients(file, count, slots, checkpointing):
    def work(member):
        stack, blocks = shared(file, member, slots=slots, checkpointing=checkpointing)
        return train_steps(stack, inputs(64)), blocks.waits if slots > 1 else 0

    expected = train_steps(loaded(file, None)[0].adapt(), inputs(64))
    for found, waits in together(count, work):
        assert_same(found, expected)
        assert waits == 0


@pytest.mark.parametrize("fp8", ["block", "channel", "tensor", "cast"])
def test_codes_and_scales_are_shared_as_bytes(file, fp8):
    expected = train_steps(
        loaded(file, None, fp8=fp8, dtype=torch.bfloat16)[0].adapt(), inputs(64, dtype=torch.bfloat16)
    )

    def work(member):
        stack, _ = shared(file, member, fp8=fp8, dtype=torch.bfloat16)
        assert type(stack.blocks[0].up).__name__ == "Fp8Linear"
        return train_steps(stack, inputs(64, dtype=torch.bfloat16))

    for found in together(2, work):
        assert_same(found, expected)


def test_each_keeps_its_part_and_reads_no_more_than_it_needs(file, monkeypatch):
    read: list[set[str]] = [set(), set()]
    whole = sum(parameter.nbytes for parameter in Stack(width=64).blocks.parameters())
    real = WeightFile.read

    def noted(self, name, **how):
        read[reading.number].add(name)
        return real(self, name, **how)

    def work(member):
        reading.number = member.number
        stack, shares = loaded(file, member)
        assert all(parameter.untyped_storage().nbytes() == 4 for parameter in stack.blocks.parameters())
        assert all(parameter.isnan().all() for parameter in stack.blocks.parameters()), "a mistake must show"
        assert stack.enter.weight.untyped_storage().nbytes() == 64 * 64 * 4
        return shares.device_bytes

    reading = threading.local()
    monkeypatch.setattr(WeightFile, "read", noted)
    first, second = together(2, work)
    assert first == second and whole / 2 <= first < 0.52 * whole
    in_blocks = [{name for name in names if name.startswith("blocks")} for names in read]
    cut = in_blocks[0] & in_blocks[1]  # of each block the tensor that lies in both parts
    assert len(in_blocks[0] | in_blocks[1]) == 5 * 6 and len(cut) == 5
    assert all({"enter.weight", "enter.bias"} < names for names in read)


def test_what_is_merged_while_loading_is_shared_out(file):
    """The whole tensor is seen before it is cut, by those who keep something of it."""

    def merge(name, tensor):
        return tensor * 2 if name.endswith("up.weight") else tensor

    def work(member):
        stack, shares = loaded(file, member, inner=merge)
        share_blocks(stack.blocks, shares)
        with torch.no_grad():
            return stack(*inputs(64))

    expected = loaded(file, None)[0]
    with torch.no_grad():
        for block in expected.blocks:
            block.up.weight.mul_(2)
        for found in together(2, work):
            assert torch.equal(found, expected(*inputs(64)))


def test_the_next_block_is_on_its_way_forward_and_backward(file):
    def work(member):
        stack, blocks = shared(file, member)
        train_steps(stack, inputs(64), steps=3)
        return blocks.copies, blocks.waits, len(member.gathered), blocks.gathered

    # the first two are there; a step then brings 3 forward and 3 backward
    first, second = together(2, work)
    assert first == second and first[:3] == (2 + 3 * 6, 0, 2 + 3 * 6)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_only_the_first_samples_and_the_others_follow(file, mode):
    """In any order of blocks, and ending anywhere: the training goes on as if nothing had been."""
    plain = loaded(file, None)[0].adapt()
    expected = [*train_steps(plain, inputs(64)), *train_steps(plain, inputs(64))]

    def work(member):
        stack, blocks = shared(file, member)
        found = train_steps(stack, inputs(64))
        if member.number:
            blocks.follow()
        else:
            with blocks.led(), mode():
                sampled = stack(*inputs(64))
                sampled = [stack.blocks[index](sampled, inputs(64)[1]) for index in (4, 0, 2)][-1]
            assert sampled.isfinite().all()
        return [*found, *train_steps(stack, inputs(64))], blocks.gathered

    (found, gathered), (found_too, gathered_too) = together(2, work)
    assert_same(found, expected)
    assert_same(found_too, expected)
    assert gathered == gathered_too


def test_a_sample_is_that_of_the_whole_base(file):
    with torch.no_grad():
        expected = loaded(file, None)[0].adapt()(*inputs(64))

    def work(member):
        stack, blocks = shared(file, member)
        if member.number:
            return blocks.follow()
        with blocks.led(), torch.no_grad():
            return stack(*inputs(64))

    assert torch.equal(together(2, work)[0], expected)


def test_of_three_two_train_and_one_follows(file):
    expected = train_steps(loaded(file, None)[0].adapt(), inputs(64))

    def work(member):
        stack, blocks = shared(file, member)
        if member.number == 2:
            return blocks.follow()
        with blocks.led():
            return train_steps(stack, inputs(64))

    for found in together(3, work)[:2]:
        assert_same(found, expected)


def test_wrong_use_is_noticed(file):
    def twice(member):
        stack, blocks = shared(file, member)
        share_blocks(stack.blocks, None)

    def another(member):
        _, shares = loaded(file, member)
        share_blocks(loaded(file, member, dtype=torch.bfloat16)[0].blocks, shares)

    def unloaded(member):
        stack = Stack(width=64)
        shares = Shares(member, device=CPU)
        shares.plan(stack, stack.blocks)
        share_blocks(stack.blocks, shares)

    def recorded(member):
        stack, shares = loaded(file, member)
        setattr(stack.blocks[0], COMPILED_WITH_GRAPHS, True)
        share_blocks(stack.blocks, shares)

    def alone_in_their_choices(member):
        stack, shares = loaded(file, member, fp8="channel" if member.number else "")
        share_blocks(stack.blocks, shares)

    with pytest.raises(OptionError, match="in all processes, but they differ"):
        together(2, alone_in_their_choices)
    for work, kind, words in (
        (twice, ValueError, "slots come before checkpoint_blocks"),
        (another, ValueError, "not those that the parts were planned for"),
        (unloaded, ValueError, "not loaded: blocks.0"),
        (recorded, OptionError, "with --shard_base they do not"),
    ):
        with pytest.raises(kind, match=words):
            together(1, work)
