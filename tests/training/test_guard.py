"""Which steps are not taken: what is no number, what explodes; and nothing of a healthy training."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.contract.errors import OptionError
from engine.contract.events import Metric, Warning_
from engine.training.checkpoints import Keep
from engine.training.guard import RECENT, WARM_UP, Guard
from engine.training.schedules import Schedule
from engine.training.sigmas import SigmaSampling
from engine.training.states import read_position
from engine.training.tally import Measured
from tests.training.toy_job import ITEMS, Job, job

NAN, INFINITE = float("nan"), float("inf")
SPREAD = 0.1  # standard deviation of an item's latents (toy_job.batches)


def step(error: float, *, idle: float = 2.0, norm: float = 1.0) -> Measured:
    return Measured([error], norm, [], [], error, idle, strayed=NAN)


def judged(guard: Guard, errors: list[float], *, idle: float = 2.0) -> list[int]:
    """Which of these steps are not taken."""
    skipped = []
    for number, error in enumerate(errors):
        fault = guard.fault(step(error, idle=idle))
        guard.note(step(error, idle=idle), fault)
        if fault is not None:
            skipped.append(number)
    return skipped


def guard(**values) -> Guard:
    return Guard(**{"factor": 5.0, "patience": 10, **values})


def healthy(count: int, seed: int = 0) -> list[float]:
    """Errors as a real video model has them: a factor of thirty between noise levels and clips."""
    chance = random.Random(seed)
    return [min(1.6, 0.25 * chance.lognormvariate(0, 0.8)) for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_training_is_never_disturbed(seed: int) -> None:
    assert judged(guard(), healthy(5000, seed)) == []


@pytest.mark.parametrize("seed", range(5))
def test_nor_is_one_whose_base_is_no_better_than_nothing(seed: int) -> None:
    """As the models of the demo are: errors between a third of and two and a half times those of answering zero."""
    chance = random.Random(seed)
    errors = [4.2, *(chance.uniform(0.7, 5.0) for _ in range(3000))]
    assert judged(guard(), errors) == []


def test_a_ruined_model_is_known_within_steps_though_its_loss_is_not_large() -> None:
    """Also right after the first step: with the rate of another optimizer, all weights are garbage by then."""
    garbage = [2.3] * 20
    for start in (1, 5, 300):
        skipped = judged(guard(), healthy(start) + garbage)
        assert skipped[0] <= start + RECENT // 2 and len(skipped) >= 18, start


def test_a_bad_patch_is_left_again() -> None:
    some = guard()
    assert judged(some, healthy(50) + [2.5] * 4) == [52, 53]
    assert some.in_a_row == 2 and some.exploding
    assert judged(some, [0.3] * 50) == [0, 1] and some.in_a_row == 0 and not some.exploding


def test_a_single_spike_is_left_out_and_forgotten() -> None:
    """A damaged cache: its own noise-free answer would cost as much, which is why that is no measure for it."""
    some = guard()
    assert judged(some, healthy(100)) == []
    assert judged(some, [1e6], idle=1e6) == [0]
    assert judged(some, healthy(100)) == []


def test_the_first_steps_say_what_is_normal() -> None:
    assert judged(guard(), [4.0] * (WARM_UP - 1) + [400.0] + [4.0] * 20 + [400.0]) == [30]


def test_what_is_no_number_is_not_taken_and_a_scaler_may_overflow() -> None:
    for bad in (step(NAN), step(INFINITE), step(0.3, norm=NAN), step(0.3, norm=INFINITE)):
        fault = guard().fault(bad)
        assert fault is not None and not fault.exploded
    assert guard().fault(step(0.3, norm=INFINITE), scaled=True) is None
    assert guard().fault(step(NAN), scaled=True) is not None


def test_factor_0_looks_for_no_explosion_but_for_numbers() -> None:
    off = guard(factor=0.0)
    assert judged(off, healthy(20) + [2.5] * 20 + [1e9, NAN]) == [41]


def test_what_it_remembers_passes_through_json_unchanged() -> None:
    errors = healthy(60) + [2.5] * 6 + [0.2] * 3 + [1e4] + healthy(30) + [NAN] + [3.0] * 5
    whole = judged(guard(), errors)
    for cut in range(0, len(errors), 3):
        first = guard()
        before = judged(first, errors[:cut])
        rest = guard(stored=json.loads(json.dumps(first.state())))
        assert before + [number + cut for number in judged(rest, errors[cut:])] == whole, cut


# ------------------------------------------------------------------------------------------------------- in the loop


class Learnt:
    """A base that has learnt: it answers what is best for the items. What the LoRA changes is added, bounded as in a
    DiT by its last norm, and `times` as much from call `at` on."""

    def __init__(self, *, times: float = 1.0, at: int = 0) -> None:
        self.times, self.at, self.calls = times, at, 0
        self.job: Job

    def __call__(self, x_BCTHW, timestep_B, cond):
        self.calls += 1
        mean, sigma = (
            torch.stack(cond["text"])[:, :, None, None, None] / ITEMS,
            (timestep_B / 1000).view(-1, 1, 1, 1, 1),
        )
        variance, off = (1 - sigma) ** 2 * SPREAD**2 + sigma**2, x_BCTHW - (1 - sigma) * mean
        right = (sigma - (1 - sigma) * SPREAD**2) / variance * off - mean
        with torch.no_grad(), self.job.network.disabled():
            base = self.job.dit(x_BCTHW, timestep_B, cond)
        change = 3 * torch.tanh(self.job.dit(x_BCTHW, timestep_B, cond) - base)
        return right + change * (self.times if self.calls > self.at else 1.0)


def learnt(folder: Path, *, times: float = 1.0, at: int = 0, **values) -> Job:
    model = Learnt(times=times, at=at)
    made = job(folder, velocity=model, **{"schedule": Schedule(), "max_steps": 40, **values})
    model.job = made
    return made


def weights(some: Job) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in some.network.state().items()}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"accumulation": 2},
        {"count": 1},
        {"schedule": Schedule(name="constant_with_warmup", warmup=50)},
        {"optimizer": "Prodigy", "lr": 1.0},
        {"optimizer": "AdamWScheduleFree"},
        {"sampling": SigmaSampling(mode="uniform", weighting_scheme="sigma_sqrt")},
        {"full_bf16": True},
    ],
    ids=str,
)
def test_healthy_trainings_of_every_kind_lose_no_step(tmp_path: Path, values: dict) -> None:
    steps = 40 if values else 300
    for made in (job(tmp_path / "random", max_steps=steps, **values), learnt(tmp_path / "learnt", **values)):
        made.run()
        assert len(made.losses) == made.settings.max_steps
        assert not [event for event in made.said(Warning_) if "skipped" in event.message]


def test_a_much_too_high_rate_ends_the_training_and_keeps_what_is_good(tmp_path: Path) -> None:
    """The reference goes on to the end and saves what is left of the LoRA over and over."""
    keep = Keep(save_every_n_steps=4, save_last_n_steps=4, save_state=True)
    names = {"item_names": lambda epoch, first, count: [f"clip{first}"]}
    made = learnt(tmp_path, keep=keep, lr=1e-3, setup=names, max_steps=100)

    def burst(event) -> None:
        made.events.append(event)
        if isinstance(event, Metric) and event.step == 13:
            made.setup.scheduler.base_lrs = [3.0]

    object.__setattr__(made.setup, "say", burst)
    with pytest.raises(OptionError, match="loss exploded: 10 steps in a row were skipped") as caught:
        made.run()
    good = tmp_path / "toy-step00000012.safetensors"
    assert str(good) in caught.value.message and "clip" in caught.value.message
    assert "--learning_rate" in caught.value.hint and "--exploding_loss_factor 0" in caught.value.hint
    assert len([event for event in made.said(Warning_) if "step was skipped" in event.message]) == 10
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [f"toy-step000000{n}{end}" for n in ("08", "12") for end in ("-state", ".safetensors")]
    assert max(value.abs().max() for value in load_file(good).values()) < 5
    again = learnt(tmp_path, lr=1e-3, max_steps=30)
    again.resume(tmp_path / "toy-step00000012-state")
    assert len(again.losses) == 18 and not again.said(Warning_)


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_a_spike_moves_nothing_but_the_schedule(tmp_path: Path, fused: bool) -> None:
    """The step after it is that of a training which met no spike, at the same place of the schedule."""
    settings = {"fused_backward_pass": fused, "max_grad_norm": 0.0 if fused else 1.0, "optimizer": "SGD"}
    made = learnt(tmp_path, times=1e4, at=19, max_steps=21, **settings)
    made.built.optimizer.register_step_post_hook(lambda *_: seen.append(weights(made)))
    seen: list = []
    model = made.setup.velocity

    def calm(event) -> None:
        made.events.append(event)
        if isinstance(event, Warning_):
            model.times = 1.0

    object.__setattr__(made.setup, "say", calm)
    made.run()
    (warning,) = made.said(Warning_)
    assert "Step 20: the loss has exploded to" in warning.message and "times what is normal" in warning.message
    assert [event.step for event in made.said(Metric)] == [*range(1, 20), 21]
    moves = len(seen) // (len(list(made.network.parameters())) if fused else 1)
    assert moves == 20


def test_statistics_and_streaks_go_on_as_if_never_interrupted(tmp_path: Path) -> None:
    """Stopped within a streak and right before it: the same steps are skipped, the same LoRA comes out."""

    def made(folder: str, **values) -> Job:
        some = learnt(tmp_path / folder, lr=1e-3, **values)
        model, plain = some.setup.velocity, some.setup.batches

        def told(epoch: int, first: int):
            for number, batch in enumerate(plain(epoch, first)):
                model.times, model.at = (1e3, -1) if epoch in (2, 6) and first + number > 1 else (1.0, 0)
                yield batch

        object.__setattr__(some.setup, "batches", told)
        return some

    whole = made("whole")
    whole.run()
    skipped = [event.message for event in whole.said(Warning_)]
    assert len(skipped) > 4
    for stop in (12, 13, 14, 22, 39):
        first = made(f"stopped {stop}")
        control = first.setup.control

        def stopping(event, some=first, control=control, stop=stop) -> None:
            some.events.append(event)
            if getattr(event, "step", 0) == stop or f"Step {stop}:" in getattr(event, "message", ""):
                control.request_stop()

        object.__setattr__(first.setup, "say", stopping)
        assert first.run().step == stop
        rest = made(f"stopped {stop}")
        rest.resume(tmp_path / f"stopped {stop}" / f"toy-step{stop:08d}-state")
        assert [event.message for some in (first, rest) for event in some.said(Warning_)] == skipped
        assert first.losses + rest.losses == whole.losses
        assert all(torch.equal(value, whole.network.state()[name]) for name, value in rest.network.state().items())
        assert rest.setup.checkpoints.newest == tmp_path / f"stopped {stop}" / "toy.safetensors"


def test_states_by_time_wait_until_the_loss_is_well_again(tmp_path: Path) -> None:
    made = learnt(tmp_path, lr=1e-3, times=1e4, at=20, max_steps=40, save_state_every_minutes=1.0,
                  setup={"clock": iter(range(0, 10**6, 30)).__next__})  # fmt: skip
    with pytest.raises(OptionError, match="None was saved since this start"):
        made.run()
    steps = sorted(read_position(state).step for state in tmp_path.glob("*-state"))
    assert steps and max(steps) <= 20


def test_a_state_of_before_there_was_a_guard_will_do(tmp_path: Path) -> None:
    first = job(tmp_path, keep=Keep(save_state_on_train_end=True), max_steps=4)
    first.run()
    progress = tmp_path / "toy-state" / "progress.json"
    values = json.loads(progress.read_text())
    del values["guards"]
    progress.write_text(json.dumps(values | {"not_finite": 0}))
    manifest = tmp_path / "toy-state" / "manifest.json"
    told = json.loads(manifest.read_text())
    told["files"]["progress.json"] = progress.stat().st_size
    del told["crc32"]["progress.json"]
    manifest.write_text(json.dumps(told))
    assert job(tmp_path, max_steps=8).resume(tmp_path / "toy-state").step == 8
