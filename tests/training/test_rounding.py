"""Weights in bf16: rounded by chance, right on average, and the same again when a training goes on."""

from __future__ import annotations

import pytest
import torch

from engine.training.optimizers import choose_optimizer
from engine.training.rounding import Bf16Weights, round_stochastically

COUNT = 40_000
LARGEST = torch.finfo(torch.bfloat16).max


def rounded(value: float, seed: int = 0) -> torch.Tensor:
    return round_stochastically(torch.full((COUNT,), value), torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("value", [1.001, 1.0039, -0.30001, 3.14159e-5, 2.7e12, 1e-40])
def test_the_mean_is_the_number_and_only_its_two_neighbours_come(value: float) -> None:
    values, exact = rounded(value), float(torch.tensor(value))
    below, above = sorted(set(values.tolist()))
    assert below < exact < above
    bits = torch.tensor([below, above]).view(torch.int32)
    assert abs(int(bits[1]) - int(bits[0])) == 1 << 16, "neighbours in bf16"
    standard_error = (above - below) / 2 / COUNT**0.5
    assert abs(values.double().mean().item() - exact) < 4 * standard_error


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -2.5, 1.1754944e-38, float("inf"), -float("inf"), LARGEST])
def test_what_bf16_can_say_stays(value: float) -> None:
    expected = torch.tensor(value).to(torch.bfloat16).float()
    assert torch.equal(rounded(value), expected.expand(COUNT))


def test_not_a_number_stays_one() -> None:
    assert rounded(float("nan")).isnan().all()


def test_the_largest_numbers_do_not_become_infinite_by_chance() -> None:
    assert rounded(LARGEST * 1.0001).isfinite().all()


def parameters(optimizer: str, steps: int, *, lr: float, bf16: bool = True) -> torch.Tensor:
    weight = torch.nn.Parameter(torch.ones(200, 50))
    built = choose_optimizer(optimizer, [], lr=lr, full_bf16=bf16).build([{"params": [weight], "lr": lr}])
    built.train()
    for _ in range(steps):
        weight.grad = torch.ones_like(weight)
        built.optimizer.step()
    built.eval()
    return weight.detach()


def test_steps_too_small_for_bf16_are_not_lost() -> None:
    """A step of 2e-5 is a hundredth of bf16's distance below 1: rounded to the nearest, nothing would ever move."""
    exact = parameters("SGD", 50, lr=2e-5, bf16=False)
    found = parameters("SGD", 50, lr=2e-5)
    assert found.dtype == torch.bfloat16
    nearest = torch.ones(1, dtype=torch.bfloat16)
    for _ in range(50):
        nearest -= 2e-5
    assert nearest.item() == 1.0
    spread = (2**-8 * 1e-3) ** 0.5 / found.numel() ** 0.5
    assert abs(found.double().mean().item() - exact.double().mean().item()) < 4 * spread


@pytest.mark.parametrize("name", ["AdamW", "Adafactor", "Prodigy", "CAME", "Lion", "Muon", "AdamWScheduleFree"])
def test_every_optimizer_keeps_its_moments_in_float32_also_when_loaded(name: str) -> None:
    weight = torch.nn.Parameter(torch.linspace(0.1, 1, 12).view(3, 4))
    built = choose_optimizer(name, [], lr=0.01, full_bf16=True).build([{"params": [weight], "lr": 0.01}])
    built.train()
    weight.grad = torch.ones_like(weight)
    assert weight.grad.dtype == torch.bfloat16
    built.optimizer.step()
    built.eval()
    assert weight.dtype == torch.bfloat16 and weight.grad is None
    saved = built.optimizer.state_dict()
    built.optimizer.load_state_dict(saved)
    (state,) = built.optimizer.state.values()
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    assert tensors and all(value.dtype == torch.float32 for value in tensors.values())
    assert all(torch.equal(value, saved["state"][0][key]) for key, value in tensors.items())


def test_chance_depends_on_the_place_and_the_number_of_the_step_only() -> None:
    def run(order: list[int]) -> list[torch.Tensor]:
        weights = [torch.nn.Parameter(torch.ones(500)) for _ in range(2)]
        optimizer = torch.optim.SGD(weights, lr=1e-4)
        Bf16Weights(optimizer)
        for number in order:
            torch.manual_seed(number)
            weights[number].grad = torch.ones_like(weights[number])
            optimizer.step()
        return [weight.detach() for weight in weights]

    one, other = run([0, 1, 0, 1]), run([1, 1, 0, 0])
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert not torch.equal(one[0], one[1])
