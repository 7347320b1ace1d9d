"""Feed-forward layers in pieces of the tokens: the same numbers, less at a time."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from torch import nn

from engine.families import names, part
from engine.lora import network as lora
from engine.memory.checkpointing import checkpoint_blocks
from engine.memory.compile import compile_blocks
from engine.memory.pieces import InPieces, run_in_pieces

WIDTH, LENGTH = 32, 50


class Block(nn.Module):
    TOKENWISE = ("before", "tail")

    def __init__(self):
        super().__init__()
        self.ffn = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.out = nn.Linear(2 * WIDTH, WIDTH)
        self.rows = []
        self.ffn[0].register_forward_hook(lambda module, given, out: self.rows.append(out.shape[1]))

    def before(self, x):
        return self.ffn(x)

    def tail(self, one, other):
        return self.out(torch.cat([one, other.relu()], dim=-1))

    def forward(self, x):
        return x + self.tail(self.before(x), x)


def gradients(count, *, checkpointed=True, dropout=0.0, backend=None):
    """(result, gradients, rows that went through the wide layer at a time) of two blocks."""
    torch.manual_seed(0)
    blocks = nn.ModuleList(Block() for _ in range(2))
    for block in blocks:
        block.ffn[1] = nn.Sequential(nn.GELU(), nn.Dropout(dropout))
    if count > 1:
        assert run_in_pieces(blocks, count, whole_below=2) == 4
    if backend:
        for block in blocks:
            block.ffn[0]._forward_hooks.clear()  # a graph could not count rows
        compile_blocks(blocks, backend=backend)
    if checkpointed:
        checkpoint_blocks(blocks)
    torch.manual_seed(1)
    x = torch.randn(2, LENGTH, WIDTH, requires_grad=True)
    y = x
    for block in blocks:
        y = block(y)
    y.square().mean().backward()
    weights = [parameter.grad for block in blocks for parameter in block.parameters()]
    return y.detach(), [x.grad, *weights], blocks[0].rows


def close(found, exact):
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(found, exact, strict=True))


@pytest.mark.parametrize("checkpointed", [True, False])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_results_and_gradients_are_the_same(count, checkpointed):
    y, grads, rows = gradients(1, checkpointed=checkpointed)
    cut_y, cut_grads, cut_rows = gradients(count, checkpointed=checkpointed)
    assert close([cut_y, *cut_grads], [y, *grads])
    assert max(rows) == LENGTH and max(cut_rows) == LENGTH // count


@pytest.mark.parametrize("count", [4, 5])
def test_compiled_blocks_give_the_same(count):
    """With tokens left over, and without."""
    y, grads, _ = gradients(1)
    cut_y, cut_grads, _ = gradients(count, backend="aot_eager")
    assert close([cut_y, *cut_grads], [y, *grads])


def test_the_blocks_own_result_is_not_computed_again():
    """A checkpointed block runs again for what its forward pass kept, and its result is not among that."""
    runs = {True: 0, False: 0}
    for last in runs:
        torch.manual_seed(0)
        block = Block()
        block.LAST = ("tail",) if last else ()
        block.out.register_forward_pre_hook(lambda *_, last=last: runs.__setitem__(last, runs[last] + 1))
        block.forward = lambda x, block=block: block.tail(block.before(x), x)
        run_in_pieces([block], 5, whole_below=2)
        checkpoint_blocks([block])
        x = torch.randn(1, LENGTH, WIDTH, requires_grad=True)
        block(x).square().mean().backward()
        runs[last] = runs[last], x.grad
    assert torch.allclose(runs[True][1], runs[False][1])
    assert runs[True][0] == 10 and runs[False][0] == 14  # forward and backward; once more, but not for the last piece


def test_dropout_is_the_same_when_a_piece_is_computed_again():
    """Else the gradient would not be that of the loss: compared with the loss's own change."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5)).double()
    cut = InPieces(layer.forward, 3, whole_below=2)
    x = torch.randn(1, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(5)
    out = cut(x)
    out.sum().backward()
    kept = (out != 0).double()
    assert torch.allclose(x.grad, kept / 0.5 @ layer[0].weight.detach())


def test_what_is_kept_for_backward_does_not_hold_the_wide_row():
    kept = []

    def pack(tensor):
        kept.append(tensor.shape[-1])
        return tensor

    block = Block()
    run_in_pieces([block], 4, whole_below=2)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        block(torch.randn(1, LENGTH, WIDTH, requires_grad=True))
    assert kept and max(kept) <= 2 * WIDTH


def test_without_gradients_and_for_short_rows_nothing_changes():
    block = Block()
    run_in_pieces([block], 4, whole_below=LENGTH + 1)
    block(torch.randn(1, LENGTH, WIDTH))
    run_in_pieces([block], 4, whole_below=2)
    with torch.no_grad():
        block(torch.randn(1, LENGTH, WIDTH))
    assert set(block.rows) == {LENGTH}


def test_blocks_that_name_nothing_stay_as_they_are():
    assert run_in_pieces([nn.Linear(2, 2)], 4) == 0


# ------------------------------------------------------------------------------------------------- the families' blocks


@pytest.mark.parametrize("family", names(extra=False))
def test_the_blocks_of_every_family_name_parts_that_they_have(family):
    model = part(family, "model")
    blocks = list(model.blocks(model.build(part(family, "detect").fullest())))
    assert any(getattr(block, "TOKENWISE", ()) for block in blocks)
    for block in blocks:
        assert all(callable(getattr(block, name)) for name in getattr(block, "TOKENWISE", ()))


def test_a_small_dit_trains_alike(monkeypatch):
    model, keys, tiny = (part("wan", name) for name in ("model", "keys", "tiny"))
    config = dataclasses.replace(tiny.DIT_CONFIG, num_layers=2)
    weights = {name: torch.randn(p.shape) * 0.05 for name, p in model.build(config).named_parameters()}

    def step(count):
        dit = model.build(config, device="cpu")
        dit.load_state_dict(weights)
        torch.manual_seed(3)
        network = lora.create(dit, block_classes=keys.LORA_BLOCKS, exclude=keys.LORA_EXCLUDE, dim=4, alpha=4, seed=1)
        for number, parameter in enumerate(network.parameters()):
            torch.manual_seed(number)
            parameter.data.normal_(std=0.05)
        if count > 1:
            run_in_pieces(model.blocks(dit), count, whole_below=2)
        checkpoint_blocks(model.blocks(dit))
        torch.manual_seed(4)
        x, text = torch.randn(1, 16, 3, 6, 8), [torch.randn(5, config.text_dim)]
        loss = model.velocity(dit, x, torch.tensor([500.0]), {"text": text}).square().mean()
        loss.backward()
        return [loss.detach(), *(parameter.grad for parameter in network.parameters())]

    whole, cut = step(1), step(3)
    assert all((a - b).norm() <= 1e-5 * b.norm() for a, b in zip(cut, whole, strict=True))


def test_one_piece_is_compiled_for_all_pieces_of_all_blocks(monkeypatch):
    """A graph of a whole block would hold every piece: eight took minutes to compile."""
    model, tiny = part("wan", "model"), part("wan", "tiny")
    graphs = []

    def backend(graph, inputs):
        graphs.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    dit = model.build(dataclasses.replace(tiny.DIT_CONFIG, num_layers=4), device="cpu")
    dit.requires_grad_(False)
    run_in_pieces(model.blocks(dit), 8, whole_below=2)
    for cut in (cut for block in model.blocks(dit) for cut in block._in_pieces):
        cut.compute = torch.compile(cut.compute)
    checkpoint_blocks(model.blocks(dit))
    text = [torch.randn(5, tiny.DIT_CONFIG.text_dim)]
    x = torch.randn(1, 16, 2, 8, 8, requires_grad=True)
    model.velocity(dit, x, torch.tensor([500.0]), {"text": text}).square().mean().backward()
    assert len(graphs) <= 4, graphs  # before and after attention; the first block's tokens are another kind of tensor
