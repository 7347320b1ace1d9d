"""The loop: it learns, it counts as the options say, it stops, saves and goes on exactly where it was."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine.contract.errors import DataError, OptionError
from engine.contract.events import Artifact, Control, Metric, Progress, Warning_
from engine.training import micro_batch
from engine.training.checkpoints import Keep
from engine.training.loop import _Training, count_steps, step_seed
from engine.training.schedule_free import AdamWScheduleFree
from engine.training.schedules import Schedule
from engine.training.sigmas import SigmaSampling
from engine.training.states import read_owner
from engine.training.step import flow_error
from tests.training.toy_job import ITEMS, Job, batches, job

EVERY_WAY = [
    {},
    {"accumulation": 2},
    {"dropout": 0.3, "scale_weight_norms": 0.2},
    {"mixed_precision": "bf16", "base_dtype": torch.bfloat16},
    {"optimizer": "SGD", "schedule": Schedule(name="rex", warmup="20%")},
    {"sampling": SigmaSampling(mode="qinglong_flux", weighting_scheme="cosmap")},
]


def artifacts(some: Job) -> list[str]:
    return [Path(event.path).name for event in some.said(Artifact)]


@pytest.mark.parametrize("values", EVERY_WAY, ids=str)
def test_resume_continues_bit_for_bit(tmp_path: Path, values: dict) -> None:
    """The reference restarts step, epoch, schedule and file names at zero."""
    whole = job(tmp_path / "whole", **values)
    end = whole.run()
    first = job(tmp_path / "parts", keep=Keep(save_every_n_steps=4, save_state=True), **values)
    assert Stopping(first, 4).run().stopped
    torch.manual_seed(999)
    second = job(tmp_path / "parts", **values)
    outcome = second.resume(tmp_path / "parts" / "toy-step00000004-state")
    assert first.losses + second.losses == whole.losses
    assert [event.step for event in second.said(Metric)] == list(range(5, 11))
    rates = [[event.values["lr/unet"] for event in some.said(Metric)] for some in (first, second, whole)]
    assert rates[0] + rates[1] == rates[2]
    averages = [[event.values["loss/average"] for event in some.said(Metric)] for some in (first, second, whole)]
    assert averages[0] + averages[1] == averages[2]
    assert all(torch.equal(value, whole.network.state()[name]) for name, value in second.network.state().items())
    assert (outcome.step, outcome.epoch, outcome.stopped) == (end.step, end.epoch, False)


class Stopping:
    """Runs a job and asks it to stop during the given step."""

    def __init__(self, some: Job, step: int) -> None:
        self.job, self.step = some, step

    def run(self):
        say = self.job.setup.say

        def watching(event) -> None:
            say(event)
            if isinstance(event, Metric) and event.step == self.step:
                self.job.setup.control.request_stop()

        object.__setattr__(self.job.setup, "say", watching)
        return self.job.run()


def test_overfits_one_item(tmp_path: Path) -> None:
    learning = job(tmp_path, lr=3e-2, count=1, max_steps=150, schedule=Schedule())
    learning.run()
    start, end = sum(learning.losses[:30]) / 30, sum(learning.losses[-30:]) / 30
    assert end < 0.6 * start


def prior_of(some: Job):
    """The job's model without its LoRA."""

    def prior(x_BCTHW, timestep_B, cond):
        with torch.no_grad(), some.network.disabled():
            return some.dit(x_BCTHW, timestep_B, cond)

    return prior


def preserving(folder: Path, kept: range, **values) -> Job:
    """A job to which the batches of these numbers are of what the model shall not forget."""

    def marked(epoch: int, first: int):
        for batch in batches(epoch, first):
            yield {**batch, "prior": True} if int(batch["t5"][0][0]) in kept else batch

    some = job(folder, setup={"batches": marked, "prior_weight": values.pop("prior_weight", 1.0)}, **values)
    object.__setattr__(some.setup, "prior", prior_of(some))
    return some


def test_where_all_is_to_stay_nothing_is_learned_and_the_loss_is_told_all_the_same(tmp_path: Path) -> None:
    some, still = preserving(tmp_path / "some", range(ITEMS)), job(tmp_path / "still", lr=0.0)
    some.run()
    still.run()
    assert some.network.weight_norm() == 0 and some.losses == still.losses
    assert {event.values["loss/prior"] for event in some.said(Metric)} == {0.0}


def strayed(some: Job) -> float:
    """How far the LoRA leads away from the model on all items but the first."""
    with torch.no_grad():
        each = [
            (some.dit(batch["latents"], torch.tensor([500.0]), {"text": batch["t5"]})
             - prior_of(some)(batch["latents"], torch.tensor([500.0]), {"text": batch["t5"]})).square().mean()
            for batch in batches(0, 0) if batch["t5"][0][0] > 0
        ]  # fmt: skip
    return float(torch.stack(each).mean())


def test_preserving_the_prior_keeps_the_rest_as_it_was(tmp_path: Path) -> None:
    """Learning item 0 moves the others a tenth as far, and more weight on them less still."""
    way = {"lr": 1e-2, "max_steps": 150, "schedule": Schedule()}
    ways = {
        "alone": job(tmp_path / "alone", count=1, **way),
        "preserving": preserving(tmp_path / "preserving", range(1, ITEMS), **way),
        "more": preserving(tmp_path / "more", range(1, ITEMS), prior_weight=10.0, **way),
    }
    for some in ways.values():
        some.run()
    moved = {name: strayed(some) for name, some in ways.items()}
    assert moved["more"] < moved["preserving"] < 0.1 * moved["alone"]
    told = [event.values.get("loss/prior", 0) for event in ways["preserving"].said(Metric)]
    assert max(told) > 0 and told.count(0) >= 150 // ITEMS


def test_learning_rate_zero_changes_nothing_and_still_saves(tmp_path: Path) -> None:
    """The reference drops the parameter group, and with it every parameter, at rate 0."""
    still = job(tmp_path, lr=0.0)
    before = {name: value.clone() for name, value in still.network.state().items()}
    still.run()
    assert all(torch.equal(value, before[name]) for name, value in still.network.state().items())
    stored = load_file(tmp_path / "toy.safetensors")
    assert all(not value.any() for name, value in stored.items() if "lora_up" in name)
    assert any(value.any() for name, value in stored.items() if "lora_down" in name)


def test_the_base_model_is_left_as_it_was(tmp_path: Path) -> None:
    some = job(tmp_path)
    before = {name: value.clone() for name, value in some.dit.state_dict().items()}
    some.run()
    assert all(torch.equal(value, before[name]) for name, value in some.dit.state_dict().items())


def test_steps_and_epochs_are_counted_as_the_options_say() -> None:
    assert count_steps(5, accumulation=2, max_train_steps=1600, max_train_epochs=4) == (12, 4)
    assert count_steps(5, accumulation=2, max_train_steps=10, max_train_epochs=None) == (10, 4)
    assert count_steps(7, accumulation=1, max_train_steps=7, max_train_epochs=None) == (7, 1)
    with pytest.raises(DataError, match="nothing to train on"):
        count_steps(0, accumulation=1, max_train_steps=1, max_train_epochs=None)


def test_a_step_is_the_mean_of_its_micro_batches_also_when_the_epoch_leaves_only_one(tmp_path: Path) -> None:
    """accelerate divides by the full count, so that an epoch's short last group learns less."""
    some = job(tmp_path, accumulation=2, max_steps=3, lr=0.0, max_grad_norm=0.0)
    some.run()
    again = job(tmp_path, accumulation=2, max_steps=3, lr=0.0, max_grad_norm=0.0)
    training = _Training(again.setup, again.settings, None)
    parameters = list(again.network.parameters())
    everything = list(batches(0, 0))
    for step, group in enumerate((everything[:2], everything[2:4], everything[4:])):
        training.step = step
        losses = [training._loss(batch, micro_step) for micro_step, batch in enumerate(group)]
        mean = sum(losses) / len(losses)
        norm = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(mean, parameters)]).norm()
        values = some.said(Metric)[step].values
        assert values["loss/current"] == pytest.approx(mean.item(), rel=1e-6)
        assert values["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)


def test_checkpoints_have_the_reference_names_and_old_ones_go(tmp_path: Path) -> None:
    keep = Keep(
        save_every_n_steps=2, save_last_n_steps=4, save_last_n_steps_state=2, save_every_n_epochs=1,
        save_last_n_epochs=1, save_state=True,
    )  # fmt: skip
    some = job(tmp_path, count=5, max_steps=15, keep=keep)
    some.run()
    assert artifacts(some)[:3] == [
        "toy-step00000002.safetensors",
        "toy-step00000002-state",
        "toy-step00000004.safetensors",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "toy-000002-state", "toy-000002.safetensors", "toy-state", "toy-step00000010.safetensors",
        "toy-step00000012-state", "toy-step00000012.safetensors", "toy-step00000014-state",
        "toy-step00000014.safetensors", "toy.safetensors",
    ]  # fmt: skip
    from safetensors import safe_open

    with safe_open(tmp_path / "toy-000002.safetensors", framework="pt") as file:
        assert file.metadata()["ss_epoch"] == "2" and file.metadata()["ss_steps"] == "10"


def test_an_epoch_state_goes_on_with_the_next_epoch(tmp_path: Path) -> None:
    whole = job(tmp_path / "whole", max_steps=12)
    whole.run()
    first = job(tmp_path / "parts", max_steps=12, keep=Keep(save_every_n_epochs=1, save_state=True))
    first.run()
    second = job(tmp_path / "parts", max_steps=12)
    second.resume(tmp_path / "parts" / "toy-000001-state")
    assert second.losses == whole.losses[5:]
    assert all(torch.equal(value, whole.network.state()[name]) for name, value in second.network.state().items())


def test_a_finished_training_can_be_made_longer(tmp_path: Path) -> None:
    """The state at the end keeps its place in an epoch that was cut short."""
    constant = {"schedule": Schedule()}
    whole = job(tmp_path / "whole", max_steps=9, **constant)
    whole.run()
    job(tmp_path / "parts", max_steps=7, keep=Keep(save_state_on_train_end=True), **constant).run()
    longer = job(tmp_path / "parts", max_steps=9, **constant)
    longer.resume(tmp_path / "parts" / "toy-state")
    assert longer.losses == whole.losses[7:]
    done = job(tmp_path / "parts", max_steps=7, **constant)
    outcome = done.resume(tmp_path / "parts" / "toy-state")
    assert outcome.step == 7 and "there is nothing left" in done.said(Warning_)[0].message


def test_stop_finishes_the_step_and_saves_lora_and_state(tmp_path: Path) -> None:
    some = job(tmp_path)
    outcome = Stopping(some, 3).run()
    assert (outcome.stopped, outcome.step, outcome.path.name) == (True, 3, "toy-step00000003.safetensors")
    assert artifacts(some) == ["toy-step00000003.safetensors", "toy-step00000003-state"]
    assert json.loads((tmp_path / "toy-step00000003-state" / "progress.json").read_text())["batch"] == 3


def test_stop_during_the_last_step_is_an_ordinary_end(tmp_path: Path) -> None:
    outcome = Stopping(job(tmp_path, max_steps=3), 3).run()
    assert not outcome.stopped and outcome.path.name == "toy.safetensors"


def test_save_and_sample_on_request_and_in_eval_mode(tmp_path: Path) -> None:
    control, sampled = Control(), []
    some = job(
        tmp_path,
        control=control,
        max_steps=10,
        sample_at_first=True,
        sample_every_n_epochs=1,
        sample_every_n_steps=4,
        dropout=0.5,
        setup={"on_sample": lambda step, epoch: sampled.append((step, epoch, some.network.training))},
    )
    control.request_save()
    control.request_sample()
    some.run()
    assert artifacts(some) == ["toy-step00000001.safetensors", "toy-step00000001-state", "toy.safetensors"]
    assert [entry[:2] for entry in sampled] == [(0, 0), (1, None), (4, None), (5, 1), (8, None), (10, 2)]
    assert not any(training for _, _, training in sampled)


def test_sampling_and_saving_do_not_disturb_the_training(tmp_path: Path) -> None:
    plain = job(tmp_path / "a", dropout=0.3)
    plain.run()
    disturbed = job(
        tmp_path / "b",
        dropout=0.3,
        sample_every_n_steps=1,
        keep=Keep(save_every_n_steps=1, save_state=True),
        setup={"on_sample": lambda step, epoch: torch.randn(step)},
    )
    disturbed.run()
    assert disturbed.losses == plain.losses


def test_metrics_average_over_more_than_a_short_epoch(tmp_path: Path) -> None:
    """In the reference the average of a dataset of one clip is its last loss."""

    class Recorder:
        def __init__(self) -> None:
            self.logged: list = []

        def log(self, values, step) -> None:
            self.logged.append((step, dict(values)))

        def close(self) -> None:
            pass

    recorder = Recorder()
    some = job(tmp_path, scale_weight_norms=1.0, setup={"trackers": [recorder]})
    some.run()
    metrics = some.said(Metric)
    assert [event.step for event in metrics] == list(range(1, 11)) and metrics[5].epoch == 2
    for number, event in enumerate(metrics, 1):
        assert event.values["loss/average"] == pytest.approx(sum(some.losses[:number]) / number)
    names = {name for name in metrics[0].values if not name.startswith("loss/sigma_")}
    assert names == {
        "loss/current", "loss/average", "lr/unet", "grad_norm", "max_norm/keys_scaled", "max_norm/average_key_norm",
        "max_norm/max_key_norm",
    }  # fmt: skip
    assert [event.step for event in metrics if "weight_norm" in event.values] == [10]
    epochs = [(step, values) for step, values in recorder.logged if "loss/epoch" in values]
    assert [step for step, _ in epochs] == [1, 2]
    for (_, values), first in zip(epochs, (0, ITEMS), strict=True):
        assert values["loss/epoch"] == pytest.approx(sum(some.losses[first : first + ITEMS]) / ITEMS)
    assert len(recorder.logged) == 12


def test_progress_counts_the_whole_training_after_a_resume(tmp_path: Path) -> None:
    first = job(tmp_path)
    Stopping(first, 4).run()
    second = job(tmp_path)
    second.resume(tmp_path / "toy-step00000004-state")
    told = second.said(Progress)
    assert (told[0].done, told[0].total) == (5, 10) and (told[-1].done, told[-1].total) == (10, 10)
    assert told[-1].unit == "steps"


def exploding(steps: set[int]):
    """A model that answers NaN in some of its calls (counted from 1)."""
    calls = [0]

    def velocity(x_BCTHW, timestep_B, cond):
        calls[0] += 1
        return holder[0](x_BCTHW, timestep_B, cond) * (float("nan") if calls[0] in steps else 1.0)

    holder: list = []
    return velocity, holder


def test_a_loss_that_is_not_finite_skips_the_step_and_names_the_items(tmp_path: Path) -> None:
    velocity, holder = exploding({3})
    names = {"item_names": lambda epoch, first, count: [f"clip{epoch}_{first}x{count}"]}
    some = job(tmp_path, velocity=velocity, setup=names)
    holder.append(some.dit)
    some.run()
    (warning,) = some.said(Warning_)
    assert "Step 3" in warning.message and "clip0_2x1" in warning.message
    assert [event.step for event in some.said(Metric)] == [1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert all(torch.isfinite(value).all() for value in some.network.state().values())


def test_many_in_a_row_end_the_training_and_keep_what_was_good(tmp_path: Path) -> None:
    velocity, holder = exploding({2, 4, 5, 6, 7, 8})
    some = job(tmp_path, velocity=velocity, max_not_finite_steps=5)
    holder.append(some.dit)
    with pytest.raises(OptionError, match="5 steps in a row, up to step 8") as caught:
        some.run()
    assert "--learning_rate" in caught.value.hint and "toy-step00000008.safetensors" in caught.value.message
    saved = load_file(tmp_path / "toy-step00000008.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in some.network.state().items())
    again = job(tmp_path)
    assert again.resume(tmp_path / "toy-step00000008-state").step == 10  # counted anew


def test_weights_that_are_not_finite_never_replace_good_ones(tmp_path: Path) -> None:
    """Finite gradients can still blow weights up; a save would then take the last good file's place."""
    some = job(tmp_path, keep=Keep(save_every_n_steps=2, save_last_n_steps=1))
    say = some.setup.say

    def breaking(event) -> None:
        say(event)
        if isinstance(event, Metric) and event.step == 3:
            next(some.network.parameters()).data.fill_(float("nan"))

    object.__setattr__(some.setup, "say", breaking)
    with pytest.raises(OptionError, match="After step 4 .* no longer finite numbers"):
        some.run()
    assert artifacts(some) == ["toy-step00000002.safetensors"]
    assert all(value.isfinite().all() for value in load_file(tmp_path / "toy-step00000002.safetensors").values())


def test_an_exploding_loss_is_told_once_and_early(tmp_path: Path) -> None:
    calls = [0]

    def velocity(x_BCTHW, timestep_B, cond):
        calls[0] += 1
        return holder[0](x_BCTHW, timestep_B, cond) * (30.0 if calls[0] > 60 else 1.0)

    holder: list = []
    some = job(tmp_path, velocity=velocity, max_steps=80, lr=0.0, schedule=Schedule(), exploding_loss_factor=0.0)
    holder.append(some.dit)
    some.run()
    (warning,) = some.said(Warning_)
    assert warning.message.startswith("Step 6") and "--learning_rate" in warning.message


class Clock:
    """Each look at it takes so many seconds."""

    def __init__(self, step_s: float) -> None:
        self.now_s, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


def test_states_by_time_are_kept_to_the_last_ones(tmp_path: Path) -> None:
    keep = Keep(save_every_n_steps=4, save_state=True, save_last_n_states=2)
    some = job(tmp_path, keep=keep, setup={"clock": Clock(20.0)}, save_state_every_minutes=0.5)
    some.run()
    states = [path.name for path in sorted(tmp_path.glob("*-step*-state"))]
    passing = [name for name in states if read_owner(tmp_path / name).passing]
    assert len(passing) == 2 and {"toy-step00000004-state", "toy-step00000008-state"} <= set(states)
    assert len([name for name in artifacts(some) if name.endswith("-state")]) > len(states)
    assert len(list(tmp_path.glob("toy-step*.safetensors"))) == 2  # a state by time brings no LoRA
    plain = job(tmp_path / "plain")
    plain.run()
    assert some.losses == plain.losses


def test_time_that_is_over_is_a_stop(tmp_path: Path) -> None:
    some = job(tmp_path, setup={"clock": Clock(25.0)}, max_minutes=1.0)
    outcome = some.run()
    assert outcome.stopped and 0 < outcome.step < 10 and some.setup.control.stop_requested
    whole = job(tmp_path / "whole")
    whole.run()
    rest = job(tmp_path)
    rest.resume(outcome.path.with_name(f"{outcome.path.stem}-state"))
    assert some.losses + rest.losses == whole.losses


def test_averages_by_noise_level_go_on_as_they_were(tmp_path: Path) -> None:
    def levels(some) -> list:
        return [
            {name: value for name, value in event.values.items() if name.startswith("loss/sigma_")}
            for event in some.said(Metric)
        ]

    whole = job(tmp_path / "whole", max_steps=20)
    whole.run()
    first = job(tmp_path, max_steps=20)
    Stopping(first, 13).run()
    rest = job(tmp_path, max_steps=20)
    rest.resume(tmp_path / "toy-step00000013-state")
    assert levels(first) + levels(rest) == levels(whole) and all(len(entry) == 1 for entry in levels(whole))


@contextmanager
def memory_for(micro_batches: int) -> Iterator[None]:
    """Memory runs out in the last of so many micro-batches from here on."""
    calls = []

    def counted(*args, **values):
        calls.append(args)
        if len(calls) == micro_batches:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return flow_error(*args, **values)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(torch.OutOfMemoryError):
        patched.setattr(micro_batch, "flow_error", counted)
        yield


def test_a_step_that_runs_out_of_memory_costs_no_step_before_it(tmp_path: Path) -> None:
    """In the second micro-batch of the fourth step, when gradients of the first are there already."""
    whole = job(tmp_path / "whole", accumulation=2)
    whole.run()
    first = job(tmp_path / "parts", accumulation=2)
    with memory_for(8):
        first.run()
    (state,) = (tmp_path / "parts").glob("*-state")
    second = job(tmp_path / "parts", accumulation=2)
    second.resume(state)
    assert first.losses + second.losses == whole.losses
    assert all(torch.equal(value, whole.network.state()[name]) for name, value in second.network.state().items())


@pytest.mark.parametrize("cpu_offload", [False, True])
def test_running_out_of_memory_while_an_average_is_shown_spoils_nothing(tmp_path: Path, cpu_offload: bool) -> None:
    """Half of the parameters show it when a save breaks off, and the steps so far are saved all the same."""
    asked = {"optimizer": "AdamWScheduleFree", "cpu_offload": cpu_offload}
    whole = job(tmp_path / "whole", **asked)
    whole.run()
    first = job(tmp_path / "parts", keep=Keep(save_every_n_steps=4), **asked)
    calls, clone = [], torch.Tensor.clone

    def counted(tensor: torch.Tensor, **how: Any) -> torch.Tensor:
        calls.extend([1] if isinstance(tensor, torch.nn.Parameter) and len(first.losses) == 4 else [])
        if len(calls) == 3:
            calls.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return clone(tensor, **how)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(torch.OutOfMemoryError):
        patched.setattr(torch.Tensor, "clone", counted)
        first.run()
    (state,) = (tmp_path / "parts").glob("*-state")
    assert state.name == "toy-step00000004-state"
    second = job(tmp_path / "parts", **asked)
    second.resume(state)
    assert first.losses + second.losses == whole.losses
    assert all(torch.equal(value, whole.network.state()[name]) for name, value in second.network.state().items())


def test_a_step_that_only_some_parameters_have_taken_is_not_saved(tmp_path: Path) -> None:
    some, moved = job(tmp_path, optimizer="AdamWScheduleFree", keep=Keep(save_every_n_steps=2, save_state=True)), []
    move = AdamWScheduleFree._move

    def counted(*arguments: Any) -> None:
        if len(some.losses) == 3 and len(moved) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        moved.extend([1] if len(some.losses) == 3 else [])
        move(*arguments)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(torch.OutOfMemoryError):
        patched.setattr(AdamWScheduleFree, "_move", counted)
        some.run()
    assert [path.name for path in tmp_path.glob("*-state")] == ["toy-step00000002-state"]


def test_what_a_broken_step_holds_is_gone_before_anything_is_saved(tmp_path: Path) -> None:
    some, held, alive = job(tmp_path), [], []
    save = some.setup.checkpoints.save_passing_state

    def broken(*args: Any, **values: Any) -> Any:
        activations = torch.ones(3)
        held.append(weakref.ref(activations))
        if len(held) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return flow_error(*args, **values)

    def saved(*arguments: Any) -> Path:
        alive.extend(one for one in held if one() is not None)
        return save(*arguments)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(torch.OutOfMemoryError):
        patched.setattr(micro_batch, "flow_error", broken)
        patched.setattr(some.setup.checkpoints, "save_passing_state", saved)
        some.run()
    assert len(list(tmp_path.glob("*-state"))) == 1 and not alive


def test_running_out_of_memory_leaves_the_state_that_was_asked_for(tmp_path: Path) -> None:
    """In the step after it was saved: one that goes when newer ones come must not take its place."""
    some = job(tmp_path, keep=Keep(save_every_n_steps=4, save_state=True))
    with memory_for(5):
        some.run()
    (state,) = tmp_path.glob("*-state")
    assert state.name == "toy-step00000004-state" and not read_owner(state).passing


def test_a_cache_that_can_no_longer_be_read_costs_no_step_before_it(tmp_path: Path) -> None:
    """As where a network drive goes away: the steps since the last state were lost."""

    def breaking(epoch: int, first: int) -> Iterator[dict[str, Any]]:
        for number, batch in enumerate(batches(epoch, first), first):
            if (epoch, number) == (1, 2):
                raise DataError("cat_wan.safetensors cannot be read.")
            yield batch

    whole = job(tmp_path / "whole")
    whole.run()
    first = job(tmp_path / "parts", setup={"batches": breaking})
    with pytest.raises(DataError, match="cannot be read"):
        first.run()
    (state,) = (tmp_path / "parts").glob("*-state")
    assert state.name == "toy-step00000007-state" and read_owner(state).passing
    second = job(tmp_path / "parts")
    second.resume(state)
    assert first.losses + second.losses == whole.losses


def test_a_failure_behind_the_optimizers_step_is_within_it(tmp_path: Path) -> None:
    """Its norms were not clamped yet, nor was it counted: who went on from there would not get the same LoRA."""
    some = job(tmp_path, scale_weight_norms=0.2, keep=Keep(save_every_n_steps=2, save_state=True))
    clamp = some.network.clamp_norms

    def broken(limit: float) -> Any:
        if len(some.losses) == 4:
            raise RuntimeError("it broke")
        return clamp(limit)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(RuntimeError, match="it broke"):
        patched.setattr(some.network, "clamp_norms", broken)
        some.run()
    assert sorted(path.name for path in tmp_path.glob("*-state"))[-1] == "toy-step00000004-state"


def test_a_failure_that_saving_fails_in_too_stays_the_news(tmp_path: Path) -> None:
    some = job(tmp_path, setup={"batches": lambda epoch, first: batches(epoch, first, count=3)})

    def broken(*arguments: Any) -> Path:
        raise RuntimeError("and saving broke")

    with pytest.MonkeyPatch.context() as patched, pytest.raises(DataError, match="ran out before"):
        patched.setattr(some.setup.checkpoints, "save_passing_state", broken)
        some.run()


def test_data_that_ends_early_is_an_error(tmp_path: Path) -> None:
    some = job(tmp_path, setup={"batches": lambda epoch, first: batches(epoch, first, count=3)})
    with pytest.raises(DataError, match="ran out before"):
        some.run()
    assert (tmp_path / "toy-step00000003-state").is_dir()


def test_the_readers_threads_are_ended_on_a_stop(tmp_path: Path) -> None:
    closed = []

    def reading(epoch: int, first: int):
        try:
            yield from batches(epoch, first)
        finally:
            closed.append(epoch)

    Stopping(job(tmp_path, setup={"batches": reading}), 2).run()
    assert closed == [0]


def test_a_changed_dataset_goes_on_at_an_epochs_beginning(tmp_path: Path) -> None:
    Stopping(job(tmp_path, count=5, max_steps=20), 7).run()
    other = job(tmp_path, count=3, max_steps=20)
    outcome = other.resume(tmp_path / "toy-step00000007-state")
    assert "changed since the state was saved" in other.said(Warning_)[0].message
    assert other.said(Metric)[0].epoch == 3 and outcome.step == 20


def test_stratified_timesteps_of_the_batch_are_used(tmp_path: Path) -> None:
    seen = []

    def velocity(x_BCTHW, timestep_B, cond):
        seen.append(timestep_B.item())
        return holder[0](x_BCTHW, timestep_B, cond)

    def stratified(epoch: int, first: int):
        for number, batch in enumerate(batches(epoch, first)):
            yield batch | {"timesteps": torch.tensor([(number + 0.5) / ITEMS])}

    holder: list = []
    some = job(tmp_path, velocity=velocity, setup={"batches": stratified}, max_steps=5)
    holder.append(some.dit)
    some.run()
    assert seen == pytest.approx([101.0, 301.0, 501.0, 701.0, 901.0])


def test_seeds_of_neighbouring_steps_share_nothing() -> None:
    seeds = {step_seed(seed, step, number) for seed in (0, 1) for step in range(20) for number in range(6)}
    assert len(seeds) == 240 and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("when", "step"),
    [({"sample_at_first": True}, 0), ({"sample_every_n_steps": 4}, 4), ({"sample_every_n_epochs": 1}, ITEMS)],
    ids=str,
)
def test_a_stop_while_samples_are_made_is_seen_before_the_next_step(tmp_path: Path, when: dict, step: int) -> None:
    control = Control()
    some = job(tmp_path, control=control, setup={"on_sample": lambda step, epoch: control.request_stop()}, **when)
    outcome = some.run()
    assert outcome.stopped and outcome.step == len(some.losses) == step
    assert outcome.path.exists() and outcome.path.with_name(f"{outcome.path.stem}-state").is_dir()


def test_a_sample_asked_for_without_prompts_is_explained(tmp_path: Path) -> None:
    control = Control()
    control.request_sample()
    some = job(tmp_path, max_steps=2, control=control)
    some.run()
    assert ["--sample_prompts" in warning.message for warning in some.said(Warning_)] == [True]


def test_schedule_free_optimizers_save_their_averaged_weights(tmp_path: Path) -> None:
    modes: list[str] = []
    some = job(tmp_path, keep=Keep(save_every_n_steps=5))
    object.__setattr__(some.built, "train", lambda: modes.append("train"))
    object.__setattr__(some.built, "eval", lambda: modes.append("eval"))
    some.run()
    assert modes == ["train", "eval", "train", "eval", "train", "eval"]


def test_a_loss_scaler_that_overflows_lowers_its_scale_and_goes_on(tmp_path: Path) -> None:
    some = job(tmp_path, max_steps=40, schedule=Schedule())
    real = some.setup.accelerator
    real.state._mixed_precision, real.native_amp = "fp16", True
    real.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    some.run()
    norms = [event.values["grad_norm"] for event in some.said(Metric)]
    assert norms[0] != norms[0] and norms[-1] > 0 and real.scaler.get_scale() < 2**30
    assert not some.said(Warning_) and any(value.any() for name, value in some.network.state().items() if "up" in name)
