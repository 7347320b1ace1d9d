from __future__ import annotations

import pytest
import torch

from engine.contract.errors import OptionError
from engine.memory.checkpointing import checkpoint_blocks
from engine.memory.compile import compile_blocks
from tests.memory.toy import Stack, inputs, train_steps


@pytest.fixture(autouse=True)
def fresh_compiler():
    before = torch._dynamo.config.cache_size_limit
    torch._dynamo.reset()
    yield
    torch._dynamo.config.cache_size_limit = before
    torch._dynamo.reset()


@pytest.mark.parametrize("settings", [{}, {"fullgraph": True}, {"dynamic": True}, {"dynamic": False}])
def test_same_outputs_and_gradients(settings):
    stack = Stack(count=2).adapt()
    compile_blocks(stack.blocks, backend="aot_eager", **settings)
    checkpoint_blocks(stack.blocks)
    for ours, theirs in zip(train_steps(stack, inputs()), train_steps(Stack(count=2).adapt(), inputs()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_blocks_are_compiled():
    stack = Stack(count=2)
    compile_blocks(stack.blocks, backend="eager")
    counted = torch._dynamo.utils.counters["frames"]["ok"]
    stack(*inputs())
    assert torch._dynamo.utils.counters["frames"]["ok"] > counted


def test_the_number_of_versions_can_be_set():
    compile_blocks(Stack().blocks, backend="eager", cache_size_limit=32)
    assert torch._dynamo.config.cache_size_limit == 32


@pytest.mark.parametrize(
    "settings, flag", [({"mode": "fast"}, "--compile_mode"), ({"backend": "x"}, "--compile_backend")]
)
def test_unknown_names(settings, flag):
    with pytest.raises(OptionError) as caught:
        compile_blocks(Stack().blocks, **settings)
    assert flag in caught.value.hint


def test_compilation_comes_first():
    stack = Stack()
    checkpoint_blocks(stack.blocks)
    with pytest.raises(ValueError, match="before"):
        compile_blocks(stack.blocks, backend="eager")
