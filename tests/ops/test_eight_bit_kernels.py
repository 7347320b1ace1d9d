"""Attention in 8 bits on a GPU: Hopper's kernel is launched only where it was tried out. Triton is played here."""

from __future__ import annotations

import contextlib
import importlib
import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from engine import ops

NAME = "engine.ops.eight_bit_attention_triton"
GLUON = "engine.ops.hopper_attention_gluon"


@pytest.fixture
def launched(monkeypatch):
    """The module with kernels that only tell that they were launched, and what was launched how."""
    found = []

    def jit(function):
        def launch(*_, **how):
            found.append((function.__name__, how))

        return type("Kernel", (), {"__getitem__": lambda self, grid: launch})()

    triton, language = ModuleType("triton"), ModuleType("triton.language")
    triton.jit, triton.cdiv, triton.language = jit, lambda a, b: math.ceil(a / b), language
    tools = ModuleType("triton.tools.tensor_descriptor")
    tools.TensorDescriptor = SimpleNamespace(from_tensor=lambda *_: None)
    gluon = ModuleType(GLUON)
    gluon.attend_codes = lambda *_: found.append(("hopper", {}))
    for name, module in (
        ("triton", triton), ("triton.language", language), ("triton.tools", ModuleType("triton.tools")),
        ("triton.tools.tensor_descriptor", tools), (GLUON, gluon),
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(ops, GLUON.rpartition(".")[2], gluon, raising=False)
    before = sys.modules.pop(NAME, None)
    monkeypatch.setattr(ops, NAME.rpartition(".")[2], before, raising=False)  # importing it here writes that
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    yield importlib.import_module(NAME), found
    sys.modules.pop(NAME)
    if before is not None:
        sys.modules[NAME] = before


def tokens(width=64):
    return [torch.randn(1, 130, 2, width, dtype=torch.bfloat16) for _ in range(3)]


@pytest.mark.parametrize("runs", [True, False])
@pytest.mark.parametrize("width", [64, 128])
def test_hoppers_kernel_is_launched_only_where_it_can_run(launched, monkeypatch, runs, width):
    module, found = launched
    asked = []
    monkeypatch.setattr(module, "can_run", lambda *what: asked.append(what) or runs)
    module.attend(*tokens(width))
    assert asked == [(torch.device("cpu"), torch.int8, width)]
    assert [name for name, _ in found][-1] == ("hopper" if runs else "_attend")
    assert dict(found)["_quantize"]["ordered"] == runs, "values lie as the kernel that is launched wants them"


@pytest.mark.parametrize("hopper", [True, False])
def test_who_tries_it_out_is_not_asked_whether_it_can(launched, monkeypatch, hopper):
    module, found = launched
    monkeypatch.setattr(module, "can_run", None)
    module.attend(*tokens(), hopper=hopper)
    assert ("hopper" in dict(found)) == hopper
