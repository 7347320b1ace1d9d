"""An optimizer whose state and gradients wait in main memory: the same numbers, and nothing on the device between."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.training import optimizer_offload
from engine.training.checkpoints import Keep
from tests.training.toy_job import job


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    """The toy's tensors are worth a copy."""
    monkeypatch.setattr(optimizer_offload, "SMALLEST", 1)


def same(one, other) -> bool:
    return all(torch.equal(value, one.network.state()[key]) for key, value in other.network.state().items())


def waiting(some) -> list[torch.Tensor]:
    """What of the state is in memory that is copied from: parts of a larger piece."""
    tensors = [value for state in some.built.optimizer.state.values() for value in state.values()]
    return [value for value in tensors if isinstance(value, torch.Tensor) and value._base is not None]


WAYS = {
    "clipped": {},
    "accumulated": {"accumulation": 2},
    "fused": {"fused_backward_pass": True, "max_grad_norm": 0.0},
    "bf16": {"full_bf16": True, "mixed_precision": "bf16"},
    "averaged": {"ema": 0.9},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_training_is_the_same_bit_for_bit(tmp_path: Path, way: str) -> None:
    plain = job(tmp_path / "plain", **WAYS[way])
    away = job(tmp_path / "away", cpu_offload=True, **WAYS[way])
    plain.run()
    away.run()
    assert away.losses == plain.losses and same(away, plain)
    assert len(waiting(away)) >= 2 * len(away.built.parameters) and not waiting(plain)


@pytest.mark.parametrize("name", ["SGD", "Adafactor", "CAME", "Lion", "Muon", "Prodigy", "AdamWScheduleFree"])
def test_any_optimizer(tmp_path: Path, name: str) -> None:
    plain, away = (job(tmp_path / str(on), optimizer=name, cpu_offload=on) for on in (False, True))
    plain.run()
    away.run()
    assert away.losses == plain.losses and same(away, plain)


def test_no_gradient_stays_while_others_are_made(tmp_path: Path) -> None:
    some, seen = job(tmp_path, max_steps=2, cpu_offload=True), []
    parameters = some.built.parameters
    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(lambda _: seen.append(sum(p.grad is not None for p in parameters)))
    some.run()
    assert seen == [0] * (2 * len(parameters))


class Rebinding(torch.optim.Optimizer):
    """Keeps new tensors in its state, or new numbers in those that it had, instead of changing these."""

    def __init__(self, params, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state["new"] = state.get("new", parameter.grad) * 0.9 + parameter.grad
            inside = state.setdefault("inside", parameter.grad.clone())
            inside.data = inside * 0.5 + parameter.grad
            parameter -= self.param_groups[0]["lr"] * (state["new"] + inside)


def test_tensors_that_an_optimizer_puts_in_place_of_others_are_kept(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch.optim, "Rebinding", Rebinding, raising=False)
    plain, away = (job(tmp_path / str(on), optimizer="Rebinding", cpu_offload=on) for on in (False, True))
    plain.run()
    away.run()
    assert away.losses == plain.losses and same(away, plain)
    assert len(waiting(away)) >= 2 * len(away.built.parameters)


def test_small_tensors_come_together(tmp_path: Path) -> None:
    some, seen = job(tmp_path, max_steps=3, cpu_offload=True), []
    parameters, optimizer = some.built.parameters, some.built.optimizer

    def look(*_) -> None:
        state = [value for one in optimizer.state.values() for value in one.values() if value.ndim]
        for tensors in ([parameter.grad for parameter in parameters], state):
            seen.append((len(tensors), len({tensor.untyped_storage().data_ptr() for tensor in tensors})))

    optimizer.register_step_pre_hook(look)
    some.run()
    assert len(parameters) > 4
    assert seen[2:] == [(len(parameters), 1), (2 * len(parameters), 1)] * 2, "one copy for all"


def test_a_step_that_breaks_off_loses_no_state(tmp_path: Path) -> None:
    """Of a part of the parameters, and the next one is of all: their state lies in the same piece."""
    plain, away = (job(tmp_path / str(on), max_steps=2, cpu_offload=on) for on in (False, True))
    for some in (plain, away):
        some.run()
        optimizer, parameters = some.built.optimizer, some.built.parameters
        _differentiated(parameters[1:2])
        handle = optimizer.register_step_post_hook(_broken)
        optimizer._optimizer_step_post_hooks.move_to_end(handle.id, last=False)  # before the state went back
        with pytest.raises(RuntimeError):
            optimizer.step()
        handle.remove()
        _differentiated(parameters)
        optimizer.step()
    assert same(away, plain)
    states = ([one["exp_avg"] for one in some.built.optimizer.state.values()] for some in (plain, away))
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


def _broken(*_) -> None:
    raise RuntimeError("out of memory")


def _differentiated(parameters) -> None:
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, 0.01 * (1 + number))


def test_it_goes_on_bit_for_bit_also_without(tmp_path: Path) -> None:
    whole = job(tmp_path / "whole", cpu_offload=True)
    whole.run()
    job(tmp_path / "parts", keep=Keep(save_every_n_steps=4, save_state=True), cpu_offload=True).run()
    state = tmp_path / "parts" / "toy-step00000004-state"
    for on in (True, False):
        rest = job(tmp_path / f"rest{on}", cpu_offload=on)
        rest.resume(state)
        assert same(rest, whole) and bool(waiting(rest)) == on


def test_a_state_that_is_loaded_waits_at_once(tmp_path: Path) -> None:
    some = job(tmp_path / "some", cpu_offload=True)
    some.run()
    other = job(tmp_path / "other", cpu_offload=True)
    other.built.optimizer.load_state_dict(some.built.optimizer.state_dict())
    assert len(waiting(other)) == len(waiting(some)) > 0


def test_a_saved_state_is_no_larger(tmp_path: Path) -> None:
    sizes = []
    for on in (False, True):
        some = job(tmp_path / str(on), cpu_offload=on)
        some.run()
        torch.save(some.built.optimizer.state_dict(), tmp_path / "state.pt")
        sizes.append((tmp_path / "state.pt").stat().st_size)
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)


def test_a_step_that_is_left_out_leaves_no_gradient_behind(tmp_path: Path) -> None:
    def broken_once(model):
        first = iter([float("nan")])
        return lambda x_BCTHW, timestep_B, cond: model(x_BCTHW, timestep_B, cond) * next(first, 1.0)

    plain, away = (job(tmp_path / str(on), cpu_offload=on) for on in (False, True))
    for some in (plain, away):
        some.setup = replace(some.setup, velocity=broken_once(some.dit))
        some.run()
    assert away.losses == plain.losses and len(plain.losses) == 9 and same(away, plain)


def test_nothing_lives_on(tmp_path: Path) -> None:
    some = job(tmp_path, max_steps=1, cpu_offload=True)
    some.run()
    watched = weakref.ref(some.built.parameters[0])
    del some
    gc.collect()
    assert watched() is None
