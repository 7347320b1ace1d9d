"""The average of the weights: its numbers, what it is of, when it is seen, and that it disturbs nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file

from engine.contract.errors import OptionError
from engine.contract.events import Log, Metric, Warning_
from engine.training.checkpoints import Keep
from engine.training.ema import Ema, decay_at
from engine.training.schedules import Schedule
from engine.training.states import read_state
from engine.training.validation import Validation
from tests.training.test_loop import Stopping, artifacts, exploding
from tests.training.toy_job import ITEMS, Job, batches, job


def parameters(*, dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(size, generator=generator).to(dtype)) for size in (3, 5)]


def move(of: list[torch.nn.Parameter], number: int) -> None:
    """One step of something like a training."""
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for parameter in of:
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype), alpha=0.01)


def averages(ema: Ema) -> list[torch.Tensor]:
    return ema.state_dict()["averages"]


def test_the_decay_warms_up() -> None:
    assert decay_at(1, 0.999) == 0.0
    assert [decay_at(update, 0.999) for update in (2, 11, 101)] == [2 / 11, 11 / 20, 101 / 110]
    assert decay_at(10_000, 0.999) == 0.999 and decay_at(10_000, 1.0) == 10_000 / 10_009
    assert decay_at(50, 0.0) == 0.0


@pytest.mark.parametrize("decay", [0.9, 0.999])
def test_numbers_are_those_of_diffusers(decay: float) -> None:
    ours, theirs = parameters(), parameters()
    ema, reference = Ema(ours, decay=decay), EMAModel(theirs, decay=decay)
    ema.begin()
    for number in range(200):
        move(ours, number), move(theirs, number)
        ema.update(), reference.step(theirs)
    for one, other in zip(averages(ema), reference.shadow_params, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-6)


def test_bf16_weights_are_averaged_in_float32() -> None:
    """In bf16 a share of a thousandth is lost altogether."""
    trained = parameters(dtype=torch.bfloat16)
    ema = Ema(trained, decay=0.999)
    ema.begin()
    wanted = [parameter.detach().double() for parameter in trained]
    for number in range(1, 3001):
        move(trained, number)
        ema.update()
        decay = decay_at(number, 0.999)
        wanted = [decay * value + (1 - decay) * p.detach().double() for value, p in zip(wanted, trained, strict=True)]
    for one, other in zip(averages(ema), wanted, strict=True):
        assert one.dtype == torch.float32 and torch.allclose(one.double(), other, rtol=0, atol=1e-5)
    with ema.shown():
        assert all(parameter.dtype == torch.float32 for parameter in trained)
    assert all(parameter.dtype == torch.bfloat16 for parameter in trained)


def test_what_is_shown_is_taken_back_as_it_was() -> None:
    trained = parameters()
    ema = Ema(trained, decay=0.9)
    ema.begin()
    for number in range(20):
        move(trained, number), ema.update()
    before, places = [p.detach().clone() for p in trained], [p.data_ptr() for p in trained]
    average = [value.clone() for value in averages(ema)]
    with pytest.raises(KeyError), ema.shown():
        assert all(torch.equal(p, value) for p, value in zip(trained, average, strict=True))
        raise KeyError
    assert [p.data_ptr() for p in trained] == places
    assert all(torch.equal(p, value) for p, value in zip(trained, before, strict=True))
    move(trained, 99)
    assert all(torch.equal(one, value) for one, value in zip(averages(ema), average, strict=True))


def test_of_several_experts_each_has_the_average_of_its_own_steps() -> None:
    together, alone = parameters(), parameters()
    ema, single = Ema(together, decay=0.95), Ema(alone[:1], decay=0.95)
    ema.begin(), single.begin()
    for number in range(60):
        turn = number % 3 > 0
        together[0].requires_grad_(turn), together[1].requires_grad_(not turn)
        if turn:
            move(together[:1], number), move(alone[:1], number)
            single.update()
        else:
            move(together[1:], number)
        ema.update()
    assert torch.equal(averages(ema)[0], averages(single)[0])


def test_the_average_may_wait_elsewhere() -> None:
    trained = parameters()
    ema = Ema(trained, decay=0.9, device="meta")
    ema.begin()
    assert all(value.is_meta for value in averages(ema))


def test_a_stored_average_of_other_parameters_is_refused() -> None:
    ema = Ema(parameters(), decay=0.9)
    ema.begin()
    with pytest.raises(ValueError, match="other shapes"):
        Ema(parameters()[:1], decay=0.9).load_state_dict(ema.state_dict())


# ------------------------------------------------------------------------------------------------------- in the loop


def average_of(some: Job) -> list[torch.Tensor]:
    return [value.clone() for value in averages(some.setup.ema)]


def following(some: Job) -> list[list[torch.Tensor]]:
    """The weights after each step that was taken, filled while the job runs."""
    found: list[list[torch.Tensor]] = []
    say = some.setup.say

    def watching(event) -> None:
        say(event)
        if isinstance(event, Metric):
            found.append([parameter.detach().clone() for parameter in some.built.parameters])

    object.__setattr__(some.setup, "say", watching)
    return found


def recomputed(steps: list[list[torch.Tensor]], decay: float) -> list[torch.Tensor]:
    average = [value.float() for value in steps[0]]
    for update, step in enumerate(steps[1:], 2):
        keep = decay_at(update, decay)
        average = [value.lerp(now.float(), 1 - keep) for value, now in zip(average, step, strict=True)]
    return average


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


WAYS = [
    {},
    {"accumulation": 2, "dropout": 0.3},
    {"scale_weight_norms": 0.02, "lr": 0.05},
    {"full_bf16": True},
    {"optimizer": "SGD", "fused_backward_pass": True, "max_grad_norm": 0.0},
]


@pytest.mark.parametrize("values", WAYS, ids=str)
def test_each_step_counts_once_and_after_the_norms_were_clamped(tmp_path: Path, values: dict) -> None:
    some = job(tmp_path, ema=0.8, **values)
    steps = following(some)
    some.run()
    assert len(steps) == 10 and same(average_of(some), recomputed(steps, 0.8))
    if "scale_weight_norms" in values:
        assert any(event.values["max_norm/keys_scaled"] for event in some.said(Metric))


@pytest.mark.parametrize("values", WAYS, ids=str)
def test_an_average_changes_nothing_in_the_training(tmp_path: Path, values: dict) -> None:
    plain, averaged = job(tmp_path / "a", **values), job(tmp_path / "b", ema=0.8, **values)
    plain.run(), averaged.run()
    assert plain.losses == averaged.losses
    assert all(torch.equal(value, plain.network.state()[name]) for name, value in averaged.network.state().items())


@pytest.mark.parametrize("values", WAYS, ids=str)
def test_resume_continues_the_average_bit_for_bit(tmp_path: Path, values: dict) -> None:
    whole = job(tmp_path / "whole", ema=0.8, **values)
    whole.run()
    Stopping(job(tmp_path / "parts", ema=0.8, **values), 6).run()
    rest = job(tmp_path / "parts", ema=0.8, **values)
    rest.resume(tmp_path / "parts" / "toy-step00000006-state")
    assert same(average_of(rest), average_of(whole))
    ours, theirs = (load_file(tmp_path / name / "toy_ema.safetensors") for name in ("parts", "whole"))
    assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_steps_that_are_skipped_do_not_count(tmp_path: Path) -> None:
    velocity, holder = exploding({3, 7})
    some = job(tmp_path, velocity=velocity, ema=0.8)
    holder.append(some.dit)
    steps = following(some)
    some.run()
    assert len(some.said(Warning_)) == 2 and len(steps) == 8
    assert same(average_of(some), recomputed(steps, 0.8))


def test_an_overflow_of_a_loss_scaler_does_not_count(tmp_path: Path) -> None:
    some = job(tmp_path, ema=0.8, max_steps=40, schedule=Schedule())
    real = some.setup.accelerator
    real.state._mixed_precision, real.native_amp = "fp16", True
    real.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    some.run()
    overflows = sum(norm != norm or norm == float("inf") for norm in (e.values["grad_norm"] for e in some.said(Metric)))
    assert 0 < overflows < 40
    assert set(some.setup.ema.state_dict()["updates"]) == {40 - overflows}


def test_files_of_the_average_come_and_go_with_the_others(tmp_path: Path) -> None:
    some = job(tmp_path, ema=0.8, keep=Keep(save_every_n_steps=3, save_last_n_steps=3))
    steps = following(some)
    outcome = some.run()
    assert artifacts(some)[:2] == ["toy-step00000003.safetensors", "toy_ema-step00000003.safetensors"]
    assert outcome.path.name == "toy.safetensors"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "toy-step00000006.safetensors", "toy-step00000009.safetensors", "toy.safetensors",
        "toy_ema-step00000006.safetensors", "toy_ema-step00000009.safetensors", "toy_ema.safetensors",
    ]  # fmt: skip
    stored, raw = load_file(tmp_path / "toy_ema.safetensors"), load_file(tmp_path / "toy.safetensors")
    assert all(torch.equal(value, raw[name]) for name, value in some.network.state().items())
    names = {id(parameter): name for name, parameter in some.network.named_parameters()}
    for parameter, value in zip(some.built.parameters, recomputed(steps, 0.8), strict=True):
        assert torch.equal(stored[names[id(parameter)].removeprefix("adapters.")], value)
    assert all(torch.equal(value, raw[name]) for name, value in stored.items() if name.endswith("alpha"))


def test_samples_and_validation_see_the_average(tmp_path: Path) -> None:
    seen = []

    def shown() -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in some.built.parameters]

    def velocity(x_BCTHW, timestep_B, cond):
        if not torch.is_grad_enabled():
            seen.append(("validation", shown(), average_of(some)))
        return some.dit(x_BCTHW, timestep_B, cond)

    clips = [(str(n), batch) for n, batch in enumerate(batches(0, 0))][:1]
    some = job(
        tmp_path, ema=0.8, velocity=velocity, sample_every_n_steps=5,
        setup={
            "on_sample": lambda step, epoch: seen.append(("sample", shown(), average_of(some))),
            "validation": Validation(
                clips=lambda first, every: clips[first::every], count=1, sigmas=[0.5], seed=1, every_n_steps=5
            ),
        },
    )  # fmt: skip
    some.run()
    assert [what for what, _, _ in seen] == ["validation", "validation", "sample", "validation", "sample"]
    assert all(same(there, average) for _, there, average in seen)
    assert not same(seen[-1][1], shown())


def test_an_average_can_begin_later_and_be_left_out_again(tmp_path: Path) -> None:
    constant = {"schedule": Schedule()}
    job(tmp_path, keep=Keep(save_state_on_train_end=True), max_steps=4, **constant).run()
    later = job(tmp_path, keep=Keep(save_state_on_train_end=True), ema=0.8, max_steps=8, **constant)
    steps = following(later)
    later.resume(tmp_path / "toy-state")
    assert any("averaging starts at step 4" in event.message for event in later.said(Log))
    assert len(steps) == 4 and same(average_of(later), recomputed(steps, 0.8))
    without = job(tmp_path / "without", max_steps=ITEMS * 2, **constant)
    assert without.run(read_state(tmp_path / "toy-state", without.setup.parts)).step == ITEMS * 2
    assert not list((tmp_path / "without").glob("*ema*"))


def test_an_average_in_a_state_that_does_not_fit_is_told(tmp_path: Path) -> None:
    job(tmp_path, ema=0.8, keep=Keep(save_state_on_train_end=True)).run()
    other = job(tmp_path, ema=0.8)
    object.__setattr__(other.setup, "ema", Ema(parameters(), decay=0.8))
    with pytest.raises(OptionError, match="does not fit the Ema of this job"):
        read_state(tmp_path / "toy-state", other.setup.parts)
