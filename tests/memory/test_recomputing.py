"""Blocks that are computed again for their gradients alone train like blocks that are checkpointed by PyTorch."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.families import names, part
from engine.lora import network as lora
from engine.lora.adapters import LohaAdapter
from engine.lora.several import LoraNetworks
from engine.memory.checkpointing import checkpoint_blocks
from engine.memory.compile import compile_blocks
from engine.memory.fp8 import quantize_model
from engine.memory.pieces import run_in_pieces
from engine.memory.recomputing import learning_now, recomputed, taken_apart, tell_what_learns
from engine.memory.sharing import absent
from engine.memory.streaming import BlockStream, stream_blocks
from engine.ops.kept_attention import Shelf
from engine.ops.last_product import last_product, without_result

FAMILIES = names(extra=False)
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def build(family, *, dtype=torch.float32, fp8=False, **adapters):
    """(model file, DiT, LoRA that changes something) of small sizes."""
    model, keys, tiny = (part(family, name) for name in ("model", "keys", "tiny"))
    dit = model.build(tiny.DIT_CONFIG, device="cpu", dtype=dtype)
    torch.manual_seed(0)
    for name, parameter in dit.named_parameters():
        norm = "norm" in name and name.endswith("weight") and parameter.ndim == 1
        parameter.data = (torch.randn(parameter.shape) * 0.05 + norm).to(dtype)
    if fp8:
        quantize_model(dit, wanted=keys.is_fp8_weight, mode="channel")
    exclude = adapters.pop("exclude", keys.LORA_EXCLUDE)
    network = lora.create(dit, block_classes=keys.LORA_BLOCKS, exclude=exclude, dim=4, alpha=4, seed=1, **adapters)
    for parameter in network.parameters():
        parameter.data.normal_(std=0.05)
    return model, dit, network.requires_grad_(True).train()


def conditions(family, batch):
    config = part(family, "tiny").DIT_CONFIG
    text = [torch.randn(5 + 2 * number, config.text_dim) for number in range(batch)]
    if family == "wan":
        return {"text": text}
    more = {"image": torch.randn(batch, 9, config.image_dim)} if family == "framepack" else {}
    guidance = torch.full((batch,), 6.0)
    return {"text": text, "pooled": torch.randn(batch, config.pooled_dim), "guidance": guidance, **more}


def trained(family, *, told, pieces=0, backend=None, batch=1, autocast=False, offload=False, streamed=0, keep_from=20,
            checkpointed=True, **built):  # fmt: skip
    """The loss and the LoRA's gradients of the second of two steps."""
    torch._dynamo.reset()
    model, dit, network = build(family, dtype=torch.bfloat16 if autocast else torch.float32, **built)
    blocks = model.blocks(dit)
    if told:
        tell_what_learns(blocks, network.learning_in)
    if pieces:
        run_in_pieces(blocks, pieces, whole_below=2)
    if backend:
        compile_blocks(blocks, backend=backend)
    if streamed:
        stream_blocks(blocks, streamed, device="cpu")
    if checkpointed:
        checkpoint_blocks(blocks, offload=offload, smallest_offload=0, keep_from=keep_from)
    for _ in range(2):
        torch.manual_seed(4)
        network.zero_grad()
        noisy, cond = torch.randn(batch, 16, 3, 6, 8), conditions(family, batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model.velocity(dit, noisy, torch.full((batch,), 500.0), cond).float().square().mean()
        loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in network.parameters())]


def distance(found, exact):
    """The largest relative distance; every gradient of the exact ones is there and not zero."""
    assert all(one is not None and one.norm() > 0 for one in exact)
    return max(float((a - b).float().norm() / b.float().norm()) for a, b in zip(found, exact, strict=True))


WAYS = {
    "compiled": {"backend": "aot_eager"},
    "in pieces": {"pieces": 3},
    "compiled in pieces": {"pieces": 3, "backend": "aot_eager"},
}


@pytest.mark.parametrize(
    ("family", "way"),
    [*((family, "in pieces") for family in FAMILIES), ("wan", "compiled"), ("hunyuan_video", "compiled in pieces")],
)
def test_the_gradients_are_those_of_a_checkpoint(family, way):
    assert distance(trained(family, told=True, **WAYS[way]), trained(family, told=False)) < 2e-5


@pytest.mark.parametrize(
    ("way", "more"),
    [
        ("compiled", {"streamed": 2, "offload": True}),
        ("in pieces", {"streamed": 2, "offload": True}),
        ("compiled", {"keep_from": 10**6}),
        ("compiled", {"batch": 2}),
    ],
    ids=str,
)
def test_beside_other_ways_to_save_memory(way, more):
    """Captions of a batch are of different lengths, which breaks a compiled graph in two."""
    exact = trained("hunyuan_video", told=False, batch=more.get("batch", 1))
    assert distance(trained("hunyuan_video", told=True, **WAYS[way], **more), exact) < 2e-5


@pytest.mark.parametrize("told", [False, True])
def test_pieces_fetch_their_weights_in_backward_without_checkpoints_too(monkeypatch, told):
    """As with a shared base: a block that is in no slot has nothing to compute with, not even in main memory."""
    monkeypatch.setattr(
        BlockStream, "_elsewhere",
        lambda self, position: [absent(piece, self.device) for piece in self._pieces[position]],
    )  # fmt: skip
    exact = trained("hunyuan_video", told=False)
    found = trained("hunyuan_video", told=told, pieces=3, streamed=4, checkpointed=False)
    assert distance(found, exact) < 2e-5


def test_as_trainings_do_it():
    """fp8, bfloat16, autocast, the real compiler; which writes over what its graph has used, but not over the shelf.

    In a process of its own, where nothing that other tests imported stands in the compiler's way.
    """
    code = "from tests.memory import test_recomputing; test_recomputing.compare_with_the_real_compiler()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def compare_with_the_real_compiler():
    exact = trained("wan", told=False, autocast=True, fp8=True)
    found = trained("wan", told=True, autocast=True, fp8=True, backend="inductor")
    both = list(zip(found, exact, strict=True))[1:]
    assert min(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) for a, b in both) > 0.98
    assert float(found[0]) == pytest.approx(float(exact[0]), rel=2e-3)


def test_a_shelf_for_graphs_that_write_over_what_they_used():
    """They get another tensor than the one kept, and what they read is not kept any longer."""
    shelf = Shelf(once=True)
    writing, reading = shelf.contexts()
    with writing:
        made = shelf.result(lambda: (torch.ones(2), torch.ones(1)))
    made[0].zero_()
    with reading:
        found, _ = shelf.result(lambda: pytest.fail("it was kept"))
    assert torch.equal(found, torch.ones(2)) and shelf._kept == [(None, None)]


def test_where_the_gate_learns_its_gradient_is_right():
    """It is the one gradient that depends on the block's last product."""
    gates = {"exclude": "", "include_patterns": [], "exclude_patterns": [r"^(?!.*mod).*"]}
    exact = trained("hunyuan_video", told=False, **gates)
    assert distance(trained("hunyuan_video", told=True, backend="aot_eager", **gates), exact) < 2e-5


def test_the_last_product_is_left_out_for_gradients_alone():
    layer = nn.Linear(3, 2)
    x, gate = torch.randn(1, 4, 3, requires_grad=True), torch.randn(1, 1, 2)
    exact = torch.autograd.grad((last_product(layer, x, gate) * gate).sum(), [x, *layer.parameters()])
    with without_result():
        made = last_product(layer, x, gate)
        assert not torch.allclose(made, layer(x)) and made.shape == layer(x).shape
        found = torch.autograd.grad((made * gate).sum(), [x, *layer.parameters()])
        assert torch.equal(last_product(layer, x, gate.requires_grad_()), layer(x))
    assert all(map(torch.allclose, found, exact))
    assert torch.equal(last_product(layer, x, gate), layer(x))


@pytest.mark.parametrize("way", ["compiled", "in pieces"])
def test_dora_too(way):
    exact = trained("wan", told=False, decompose=True)
    assert distance(trained("wan", told=True, decompose=True, **WAYS[way]), exact) < 2e-5


@pytest.mark.parametrize("adapters", [{"dropout": 0.5}, {"rank_dropout": 0.5}, {"kind": LohaAdapter}], ids=str)
def test_where_random_numbers_are_drawn_nothing_is_told(adapters):
    model, dit, network = build("wan", **adapters)
    tell_what_learns(model.blocks(dit), network.learning_in)
    assert all(learning_now(block) is None for block in model.blocks(dit))


def test_what_learns_now_of_several_experts():
    model, dit, first = build("wan")
    keys = part("wan", "keys")
    second = lora.create(dit, block_classes=keys.LORA_BLOCKS, exclude=keys.LORA_EXCLUDE, dim=2, alpha=2, seed=1)
    both = LoraNetworks({"high": first, "low": second})
    block = model.blocks(dit)[1]
    tell_what_learns([block], both.learning_in)
    both.use(1)
    found = learning_now(block)
    assert found and {id(one) for one in found} == {id(one) for one in second.learning_in(block)}
    assert len(found) < len(list(second.parameters()))


def test_recorded_graphs_are_checkpointed_as_before():
    model, dit, network = build("wan")
    tell_what_learns(model.blocks(dit), network.learning_in)
    compile_blocks(model.blocks(dit), mode="reduce-overhead")
    assert learning_now(model.blocks(dit)[0]) is None


def test_nothing_else_is_kept():
    """The inputs alone; of what goes on inside nothing, and nothing after the backward pass."""
    made = []

    def run(x):
        made.append(weakref.ref(hidden := x * 2))
        return hidden.sin()

    x = torch.randn(4, requires_grad=True)
    tensors, call = taken_apart([x], {})
    out = recomputed(call, run, lambda leaves, grads: [grads[0] * 3], tensors, [])
    gc.collect()
    assert made[0]() is None
    out.sum().backward()
    assert torch.equal(x.grad, torch.full((4,), 3.0))


def test_one_graph_serves_all_blocks():
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    trained("wan", told=True, pieces=3, backend="aot_eager")
    # forward and seed, before and after attention; the first block's tokens need no gradient; what is left over runs
    # as it is
    assert graphs["unique_graphs"] - before <= 6
