"""Sets of weights that take turns: the right numbers are in the model, streamed or not, and nothing is lost."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.contract.errors import OptionError, WeightsError
from engine.memory.exchange import WeightSets, trade
from engine.memory.slots import COMPILED_WITH_GRAPHS
from engine.memory.streaming import stream_blocks


class Model(nn.Module):
    def __init__(self, seed: int, *, width: int = 4, count: int = 4, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.inlet = nn.Linear(width, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(count))
        self.register_buffer("shift", torch.randn(width))
        self.to(dtype).requires_grad_(False)

    def forward(self, x):
        x = self.inlet(x) + self.shift
        for block in self.blocks:
            x = block(x).tanh()
        return x


X = torch.linspace(-1, 1, 8).view(2, 4)


class Shelf:
    """Makes models by number and counts how often."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def __call__(self, number: int):
        self.made.append(number)
        model = Model(number)
        return model, model.blocks


@pytest.mark.parametrize("streamed", [0, 2, 4])
@pytest.mark.parametrize("keep", [True, False])
def test_each_turn_computes_with_its_own_weights(streamed, keep):
    model, shelf = Model(0), Shelf()
    wanted = [Model(number)(X) for number in range(3)]
    stream = stream_blocks(model.blocks, streamed, device="cpu", pinned=False) if streamed else None
    sets = WeightSets(model, model.blocks, 0, shelf, stream=stream, keep=keep)
    turns = [0, 1, 0, 0, 2, 1, 2, 0]
    for number in turns:
        sets.use(number)
        assert torch.equal(model(X), wanted[number]), number
    assert shelf.made == ([1, 2] if keep else [1, 0, 2, 1, 2, 0])


def test_what_is_not_kept_is_gone_before_the_next_one_is_loaded():
    model = Model(0)
    stream = stream_blocks(model.blocks, 2, device="cpu", pinned=False)

    def load(number: int):
        assert not sum(tensor.numel() for tensor in model.state_dict().values())
        assert not stream.host_bytes
        other = Model(number)
        return other, other.blocks

    sets = WeightSets(model, model.blocks, 0, load, stream=stream, keep=False)
    sets.use(1)
    assert torch.equal(model(X), Model(1)(X))


def test_a_turn_on_one_device_moves_no_numbers():
    model = Model(0)
    before = model.inlet.weight.data_ptr()
    sets = WeightSets(model, model.blocks, 0, Shelf())
    sets.use(1)
    assert model.inlet.weight.data_ptr() != before
    sets.use(0)
    assert model.inlet.weight.data_ptr() == before


def test_a_turn_across_devices_moves_the_numbers_and_keeps_both_places():
    class Elsewhere(torch.Tensor):
        device = torch.device("meta")  # not the parameter's, so that the numbers have to be copied

    parameter, waiting = nn.Parameter(torch.zeros(3), requires_grad=False), torch.ones(3)
    place, other = parameter.data_ptr(), waiting.data_ptr()
    left = trade(parameter, waiting.as_subclass(Elsewhere))
    assert parameter.tolist() == [1, 1, 1] and left.tolist() == [0, 0, 0]
    assert parameter.data_ptr() == place and left.data_ptr() == other


def test_gradients_of_a_turn_are_its_own():
    model = Model(0)
    sets = WeightSets(model, model.blocks, 0, Shelf())
    sets.use(1)
    found = X.clone().requires_grad_()
    model(found).sum().backward()
    alone = X.clone().requires_grad_()
    Model(1)(alone).sum().backward()
    assert torch.equal(found.grad, alone.grad)


def test_sets_of_different_number_formats_are_refused():
    def load(number: int):
        other = Model(number, dtype=torch.bfloat16)
        return other, other.blocks

    model = Model(0)
    with pytest.raises(WeightsError, match="different names or number formats"):
        WeightSets(model, model.blocks, 0, load).use(1)


def test_recorded_cuda_graphs_are_refused():
    model = Model(0)
    setattr(model.blocks[0], COMPILED_WITH_GRAPHS, True)
    with pytest.raises(OptionError, match="CUDA graphs"):
        WeightSets(model, model.blocks, 0, Shelf())
