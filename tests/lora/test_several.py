"""The LoRAs of several experts on one model: one acts and learns at a time, and all are saved."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.contract.errors import WeightsError
from engine.lora.network import create
from engine.lora.several import LoraNetworks


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return self.inner(x)


@pytest.fixture
def pair():
    torch.manual_seed(0)
    model = nn.ModuleList([Block()])
    networks = {}
    for seed, name in enumerate(("low", "high")):
        networks[name] = create(model, block_classes=["Block"], exclude="", dim=2, alpha=2, seed=seed)
        for adapter in networks[name].adapters.values():
            nn.init.normal_(adapter.lora_up.weight)
    return model, LoraNetworks(networks)


def alone(model, network, x):
    """The base and one LoRA, by hand."""
    (adapter,) = network.adapters.values()
    base = nn.functional.linear(x, model[0].inner.weight, model[0].inner.bias)
    return base + adapter.lora_up(adapter.lora_down(x)) * adapter.scale


def test_only_the_chosen_one_acts_and_learns(pair):
    model, networks = pair
    x = torch.randn(3, 4)
    for number in (0, 1, 0):
        networks.use(number)
        torch.testing.assert_close(model[0](x), alone(model, networks[number], x))
        networks.zero_grad(set_to_none=True)
        model[0](x).sum().backward()
        for index in (0, 1):
            gradients = [parameter.grad is not None for parameter in networks[index].parameters()]
            assert all(gradients) == any(gradients) == (index == number)


def test_all_can_be_switched_off_for_a_while(pair):
    model, networks = pair
    networks.use(1)
    x = torch.randn(3, 4)
    with networks.disabled():
        assert torch.equal(model[0](x), nn.functional.linear(x, model[0].inner.weight, model[0].inner.bias))
    torch.testing.assert_close(model[0](x), alone(model, networks[1], x))


def test_state_comes_back_and_a_single_ones_is_refused(pair):
    _, networks = pair
    state = {name: value.clone() for name, value in networks.state().items()}
    assert {name.partition(".")[0] for name in state} == {"low", "high"}
    for parameter in networks.parameters():
        nn.init.zeros_(parameter)
    networks.load_state(state)
    assert all(torch.equal(value, state[name]) for name, value in networks.state().items())
    with pytest.raises(WeightsError, match="not for low, high"):
        networks.load_state(networks[0].state())


def test_groups_and_norms_are_of_both(pair):
    _, networks = pair
    groups = networks.parameter_groups(0.1, 4.0)
    assert [group["name"] for group in groups] == ["unet low", "unet plus low", "unet high", "unet plus high"]
    assert [group["lr"] for group in groups] == [0.1, 0.4, 0.1, 0.4]
    assert networks.clamp_norms(1e-3).scaled == 2
