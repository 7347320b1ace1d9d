"""Steps within the backward pass: the same numbers, one gradient at a time, and nothing broken by a bad one."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch

from engine.contract.errors import OptionError
from engine.contract.events import Metric, Warning_
from engine.training.fused_backward import FusedBackward
from engine.training.optimizers import choose_optimizer
from tests.training.toy_job import Velocity, job


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adafactor", "CAME", "Lion", "Muon"])
def test_the_training_is_the_same_bit_for_bit(tmp_path: Path, name: str) -> None:
    plain = job(tmp_path / "plain", optimizer=name, max_grad_norm=0.0, dropout=0.2)
    fused = job(tmp_path / "fused", optimizer=name, max_grad_norm=0.0, dropout=0.2, fused_backward_pass=True)
    plain.run()
    fused.run()
    assert fused.losses == plain.losses
    assert all(torch.equal(value, plain.network.state()[key]) for key, value in fused.network.state().items())
    norms = [[event.values["grad_norm"] for event in some.said(Metric)] for some in (plain, fused)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


def test_bf16_weights_are_rounded_alike_either_way(tmp_path: Path) -> None:
    both = {"max_grad_norm": 0.0, "full_bf16": True, "mixed_precision": "bf16"}
    plain, fused = job(tmp_path / "plain", **both), job(tmp_path / "fused", fused_backward_pass=True, **both)
    plain.run()
    fused.run()
    assert all(torch.equal(value, plain.network.state()[key]) for key, value in fused.network.state().items())


def test_there_is_never_more_than_one_gradient(tmp_path: Path) -> None:
    some = job(tmp_path, max_steps=2, max_grad_norm=0.0, fused_backward_pass=True)
    counts = []
    some.built.optimizer.register_step_pre_hook(
        lambda *_: counts.append(sum(parameter.grad is not None for parameter in some.built.parameters))
    )
    some.run()
    assert counts == [1] * (2 * len(some.built.parameters))


def test_a_loss_that_is_not_finite_moves_nothing(tmp_path: Path) -> None:
    model = Velocity()

    def broken(x_BCTHW, timestep_B, cond):
        return model(x_BCTHW, timestep_B, cond) * float("nan")

    some = job(tmp_path, velocity=broken, max_steps=3, max_grad_norm=0.0, fused_backward_pass=True)
    before = {key: value.clone() for key, value in some.network.state().items()}
    some.run()
    assert len(some.said(Warning_)) == 3
    assert all(torch.equal(value, before[key]) for key, value in some.network.state().items())


def test_a_gradient_that_is_not_finite_is_told_and_does_not_reach_the_weights() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    fused = FusedBackward(torch.optim.SGD([weight], lr=1.0))
    (weight * torch.tensor([float("inf"), float("nan"), 1.0])).sum().backward()
    assert weight.tolist() == [1.0, 1.0, 0.0] and not fused.take_norm().isfinite()
    (weight * 3.0).sum().backward()
    assert fused.take_norm().item() == pytest.approx(27**0.5)


def test_a_parameter_that_does_not_learn_yet_is_moved_once_it_does() -> None:
    """Of several experts one learns at a time."""
    weight, other = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    other.requires_grad_(False)
    fused = FusedBackward(torch.optim.SGD([weight, other], lr=1.0))
    assert not other.requires_grad
    (weight + other).sum().backward()
    assert weight.tolist() == [0.0, 0.0] and other.tolist() == [1.0, 1.0]
    weight.requires_grad_(False)
    other.requires_grad_(True)
    (weight + other).sum().backward()
    assert weight.tolist() == [0.0, 0.0] and other.tolist() == [0.0, 0.0]
    assert fused.take_norm().item() == pytest.approx(2.0)


@pytest.mark.parametrize("full_bf16", [False, True])
def test_a_training_that_is_over_leaves_no_memory_behind(full_bf16: bool) -> None:
    """A worker that stays does one job after the other."""
    weight = torch.nn.Parameter(torch.ones(2))
    built = choose_optimizer("AdamW", [], lr=1.0, full_bf16=full_bf16).build([{"params": [weight], "lr": 1.0}])
    fused = FusedBackward(built.optimizer)
    weight.sum().backward()
    (state,) = built.optimizer.state.values()
    left = [weakref.ref(weight), weakref.ref(state["exp_avg"])]
    del weight, built, fused, state
    gc.collect()
    assert [one() for one in left] == [None, None]


@pytest.mark.parametrize("name", ["Prodigy", "AdamWScheduleFree"])
def test_optimizers_that_look_at_all_parameters_are_refused(name: str) -> None:
    assert choose_optimizer(name, [], lr=1.0).wanted.__name__ == name
    with pytest.raises(OptionError, match="one parameter at a time") as caught:
        choose_optimizer(name, [], lr=1.0, fused=True)
    assert "AdamW" in caught.value.hint
