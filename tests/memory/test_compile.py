from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import engine
from engine.contract.errors import OptionError
from engine.memory import compile
from engine.memory.checkpointing import checkpoint_blocks
from engine.memory.compile import compile_blocks
from tests.memory.toy import Stack, inputs, train_steps

ROOT = Path(__file__).parents[2]


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


def test_graphs_are_found_again_at_the_next_start(tmp_path):
    """Those too whose parts have gradients of their own, as frozen fp8 layers and blocks computed again do; and only
    where the gradients are the same, and the engine, whose operators the cache knows by name alone."""
    code = "from tests.memory import test_compile; test_compile.start(gradient={}, operators={}, version={!r})"
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}

    def started(gradient, operators=1, version="engine 1"):
        command = [sys.executable, "-c", code.format(gradient, operators, version)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    assert started(3) == {"gradient": 3, "found": 0, "left_out": 0}
    assert started(3) == {"gradient": 3, "found": 1, "left_out": 0}
    assert started(5) == {"gradient": 5, "found": 0, "left_out": 0}
    assert started(3, operators=7, version="engine 2") == {"gradient": 21, "found": 0, "left_out": 0}


def start(gradient, operators, version):
    """A block compiled in a process of its own: its gradient, and whether its graph was found."""

    @torch.library.custom_op("musubi_tests::same", mutates_args=())
    def same(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    same.register_fake(torch.empty_like)
    same.register_autograd(lambda ctx, grad: grad * operators)
    compile.SOURCES = version
    block = OwnGradient(gradient, same)
    compile_blocks(nn.ModuleList([block]))
    x = torch.ones(4, requires_grad=True)
    block(x).sum().backward()
    counted = torch._dynamo.utils.counters["aot_autograd"]
    told = {"found": counted["autograd_cache_hit"], "left_out": counted["autograd_cache_bypass"]}
    print(json.dumps({"gradient": int(x.grad[0]), **told}))


def test_sources_are_those_of_the_engine(tmp_path):
    (tmp_path / "ops").mkdir()
    file = tmp_path / "ops" / "attention.py"
    file.write_text("backward = 1")
    one = compile.sources(tmp_path)
    file.write_text("backward = 2")
    assert compile.sources(tmp_path) != one
    assert compile.SOURCES == compile.sources(Path(engine.__file__).parent)


def test_a_tag_of_ones_own_stays_and_compiling_processes_have_it(monkeypatch):
    monkeypatch.delenv("TORCH_COMPILE_CACHE_KEY_TAG", raising=False)
    with torch.compiler.config.patch(cache_key_tag="mine"):
        for _ in range(2):
            compile_blocks(Stack().blocks, backend="eager")
        assert torch.compiler.config.cache_key_tag == f"mine {compile.SOURCES}"
    command = [sys.executable, "-c", "import torch; print(torch.compiler.config.cache_key_tag)"]
    assert (
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == f"mine {compile.SOURCES}"
    )


class OwnGradient(nn.Module):
    def __init__(self, gradient, operator):
        super().__init__()
        self.operator = operator

        class Product(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x * 2

            @staticmethod
            def backward(ctx, grad):
                return grad * gradient

        self.product = Product

    def forward(self, x):
        return self.product.apply(self.operator(x))


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
