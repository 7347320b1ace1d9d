"""A training that is started again: it goes on, or says why not, and never writes over what is not its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.__main__ import main
from engine.training.states import read_owner, read_position

EVERY_THREE = ("--max_train_steps", 8, "--save_every_n_steps", 3, "--save_state")


@pytest.fixture(scope="module")
def whole(cached, tmp_path_factory) -> Path:
    """What an undisturbed training leaves."""
    folder = tmp_path_factory.mktemp("whole")
    assert main([str(word) for word in words(cached, folder)]) == 0
    return folder / "out"


def words(cached, folder: Path, *more: object) -> list[object]:
    (step,) = (step for step in cached.steps if step.verb == "train")
    return [*step.command, "--output_dir", folder / "out", "--logging_dir", folder / "logs", *EVERY_THREE, *more]


@pytest.fixture
def train(engine, cached, tmp_path) -> Callable:
    return lambda *more: engine(*words(cached, tmp_path, *more))


def as_if_killed(whole: Path, folder: Path, *, after: int) -> Path:
    """The output folder of a training that was killed in the step after that one."""
    out = folder / "out"
    shutil.copytree(whole, out, ignore=shutil.ignore_patterns("jobs"))
    for place in ("demo-lora.safetensors", "demo-lora_loss.png"):
        (out / place).unlink()
    for state in out.glob("*-state"):
        if read_position(state).step > after or state.name == "demo-lora-state":
            shutil.rmtree(state)
    for lora in out.glob("*-step*.safetensors"):
        if int(lora.stem[-8:]) > after:
            lora.unlink()
    change_record(out, finished_steps=None)
    return out


def change_record(out: Path, **values: object) -> None:
    record = out / "demo-lora-training.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | values))


def same_weights(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_killed_training_started_again_goes_on_by_itself(train, whole, tmp_path) -> None:
    out = as_if_killed(whole, tmp_path, after=5)
    result = train()
    assert result.status == 0 and "Resuming after step 3" in result.err, result.err
    assert same_weights(out / "demo-lora.safetensors", whole / "demo-lora.safetensors")
    histories = [torch.load(folder / "demo-lora-state" / "history.pt", weights_only=True) for folder in (out, whole)]
    assert histories[0] == histories[1]
    logs = list((tmp_path / "logs").iterdir())
    assert [path.name for path in logs] == [json.loads((out / "demo-lora-training.json").read_text())["started"]]


def test_a_damaged_state_is_told_and_the_one_before_it_taken(train, whole, tmp_path) -> None:
    """Also one whose length is right: the reference reads whatever is there."""
    out = as_if_killed(whole, tmp_path, after=7)
    broken = out / "demo-lora-step00000006-state" / "optimizer.pt"
    content = bytearray(broken.read_bytes())
    content[len(content) // 2] ^= 1
    broken.write_bytes(content)
    result = train()
    assert result.status == 0 and "Resuming after step 3" in result.err
    assert "demo-lora-step00000006-state cannot be used: optimizer.pt is damaged" in " ".join(result.err.split())
    assert same_weights(out / "demo-lora.safetensors", whole / "demo-lora.safetensors")


def test_no_state_is_no_reason_not_to_begin_again(train, whole, tmp_path) -> None:
    out = as_if_killed(whole, tmp_path, after=0)
    result = train()
    assert result.status == 0 and "Resuming" not in result.err
    assert same_weights(out / "demo-lora.safetensors", whole / "demo-lora.safetensors")


def test_a_finished_training_is_not_trained_again(train, whole, tmp_path) -> None:
    shutil.copytree(whole, tmp_path / "out")
    before = (tmp_path / "out" / "demo-lora.safetensors").read_bytes()
    for more in ((), ("--save_every_n_steps", 2), ("--max_train_steps", 4)):
        result = train(*more)
        said = " ".join(result.err.split())
        assert result.status == 0 and "Nothing to do: this training is finished, with 8 steps" in said
        assert "--max_train_steps" in said and "--fresh" in said and "Loading" not in said
    assert (tmp_path / "out" / "demo-lora.safetensors").read_bytes() == before


def test_a_finished_lora_that_was_deleted_is_made_again_from_the_last_state(train, whole, tmp_path) -> None:
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out" / "demo-lora.safetensors").unlink()
    result = train()
    assert result.status == 0 and "there is nothing left to train" in " ".join(result.err.split())
    assert same_weights(tmp_path / "out" / "demo-lora.safetensors", whole / "demo-lora.safetensors")


def test_more_steps_go_on_from_its_last_state(train, whole, tmp_path) -> None:
    shutil.copytree(whole, tmp_path / "out")
    result = train("--max_train_steps", 10)
    assert result.status == 0 and "Resuming after step 8" in result.err
    assert json.loads((tmp_path / "out" / "demo-lora-training.json").read_text())["finished_steps"] == 10


def test_more_steps_without_a_state_are_refused_with_what_can_be_done(train, whole, tmp_path) -> None:
    shutil.copytree(whole, tmp_path / "out", ignore=shutil.ignore_patterns("*-state"))
    result = train("--max_train_steps", 10)
    said = " ".join(result.err.split())
    assert result.status == 2 and "left no state to resume from" in said
    assert "--network_weights" in said and "--fresh" in said


def test_a_training_with_other_options_does_not_write_over_a_finished_one(train, whole, tmp_path) -> None:
    shutil.copytree(whole, tmp_path / "out")
    before = (tmp_path / "out" / "demo-lora.safetensors").read_bytes()
    result = train("--timestep_sampling", "sigmoid")
    said = " ".join(result.err.split())
    assert result.status == 2 and "timestep_sampling is sigmoid, was uniform" in said and "--output_name" in said
    assert (tmp_path / "out" / "demo-lora.safetensors").read_bytes() == before
    assert train("--timestep_sampling", "sigmoid", "--fresh").status == 0
    assert (tmp_path / "out" / "demo-lora.safetensors").read_bytes() != before


@pytest.mark.parametrize("number", ["", "-step00000003", "-000001"])
def test_a_lora_of_unknown_origin_is_not_written_over(train, tmp_path, number) -> None:
    """Nor one of an epoch or a step, which may be all that is left of a training."""
    (tmp_path / "out").mkdir()
    other = tmp_path / "out" / f"demo-lora{number}.safetensors"
    other.write_bytes(b"of another tool")
    result = train()
    assert result.status == 2 and "there is no record of how they were made" in " ".join(result.err.split())
    assert other.read_bytes() == b"of another tool"
    assert train("--fresh", "--max_train_steps", 1).status == 0


def test_a_lora_whose_name_begins_alike_is_not_in_the_way(train, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    endings = ("_high_noise", "_ema", ".v2", "-step-back")
    others = [tmp_path / "out" / f"demo-lora{ending}.safetensors" for ending in endings]
    for other in others:
        other.write_bytes(b"of another training")
    assert train("--max_train_steps", 1).status == 0
    assert all(other.read_bytes() == b"of another training" for other in others)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--network_dim", 8), "network_dim is 8, was 16"),
        (("--network_alpha", 2), "network_alpha is 2.0, was 16.0"),
        (("--optimizer_type", "SGD"), "optimizer_type is SGD, was AdamW"),
        (("--seed", 7), "seed is 7, was 42"),
        (("--network_module", "networks.loha"), "network_module is networks.loha"),
        (("--validation_split", 0.4), "the dataset is"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_cannot_change_is_refused_by_name(train, whole, tmp_path, option, said) -> None:
    as_if_killed(whole, tmp_path, after=7)
    result = train(*option)
    assert result.status == 2 and said in " ".join(result.err.split()), result.err
    assert "--fresh" in result.err and "Loading" not in result.err


def test_a_changed_batch_size_is_refused_as_the_datasets(train, cached, whole, tmp_path) -> None:
    as_if_killed(whole, tmp_path, after=7)
    text = (cached.folder / "dataset.toml").read_text().replace("batch_size = 1", "batch_size = 2")
    (tmp_path / "dataset.toml").write_text(text)
    result = train("--dataset_config", tmp_path / "dataset.toml")
    assert result.status == 2 and "the dataset is" in " ".join(result.err.split())


def test_harmless_changes_apply_and_others_are_told(train, whole, tmp_path) -> None:
    out = as_if_killed(whole, tmp_path, after=7)
    result = train("--save_precision", "bf16", "--max_train_steps", 9, "--max_grad_norm", 0.5)
    said = " ".join(result.err.split())
    assert result.status == 0 and "Options changed from here on: max_grad_norm is 0.5, was 1.0." in said
    assert all(value.dtype == torch.bfloat16 for value in load_file(out / "demo-lora.safetensors").values())


def test_a_stop_says_how_to_go_on(train, whole, tmp_path) -> None:
    as_if_killed(whole, tmp_path, after=7)
    result = train("--max_train_steps", 100_000, "--max_train_minutes", 0.01)
    said = " ".join(result.err.split())
    assert result.status == 0
    assert "Started again, this training goes on from here." in said and "Stopped after" in said, said[-600:]


def test_a_lower_learning_rate_counts_from_there(train, whole, tmp_path) -> None:
    """accelerate puts the old one back with the optimizer's state, and says nothing."""
    out = as_if_killed(whole, tmp_path, after=7)
    result = train("--learning_rate", 0.0)
    assert result.status == 0 and "learning_rate is 0.0, was 0.002" in " ".join(result.err.split())
    stopped = load_file(out / "demo-lora-step00000006-state" / "lora.safetensors")
    final = load_file(out / "demo-lora-state" / "lora.safetensors")
    assert all(torch.equal(value, final[name]) for name, value in stopped.items())


def test_fresh_does_not_go_on_from_what_an_earlier_training_left(train, whole, tmp_path) -> None:
    """Its states came further than those of the new one, which is killed before it has any."""
    out = as_if_killed(whole, tmp_path, after=7)
    assert train("--fresh", "--max_train_steps", 1, "--save_every_n_steps", 1).status == 0
    change_record(out, finished_steps=None)
    result = train("--max_train_steps", 2)
    assert result.status == 0 and "Resuming after step 1" in result.err


def test_a_named_state_is_where_a_training_branches_off(train, whole, tmp_path) -> None:
    """Killed before it has a state of its own, it goes on from there, not from where the other branch came to."""
    out = as_if_killed(whole, tmp_path, after=7)
    third = out / "demo-lora-step00000003-state"
    result = train("--resume", third, "--max_train_steps", 4)
    assert result.status == 0 and "Resuming after step 3" in result.err
    assert read_owner(out / "demo-lora-state").training != read_owner(third).training
    change_record(out, finished_steps=None)
    shutil.rmtree(out / "demo-lora-state")
    result = train("--max_train_steps", 5)
    assert result.status == 0 and "Resuming after step 3" in result.err, result.err


def test_a_named_state_of_another_training_does_not_write_over_this_ones_lora(train, whole, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "demo-lora.safetensors").write_bytes(b"mine")
    result = train("--resume", whole / "demo-lora-step00000003-state")
    assert result.status == 2 and "would write over" in " ".join(result.err.split())
    assert (tmp_path / "out" / "demo-lora.safetensors").read_bytes() == b"mine"


def test_without_a_seed_it_goes_on_with_the_one_it_drew(engine, cached, tmp_path) -> None:
    """A job file without a seed, as most are."""
    (step,) = (step for step in cached.steps if step.verb == "train")
    job = tmp_path / "job.toml"
    job.write_text("\n".join(line for line in step.file.read_text().splitlines() if not line.startswith("seed")))
    command = ("train", "wan", "--config_file", job, "--output_dir", tmp_path / "out", *EVERY_THREE)
    assert engine(*command, "--max_train_steps", 3).status == 0
    again = engine(*command, "--max_train_steps", 3)
    assert again.status == 0 and "Nothing to do" in " ".join(again.err.split())
    assert "Resuming after step 3" in engine(*command).err


def test_fresh_and_resume_contradict_each_other(train) -> None:
    result = train("--fresh", "--resume", "somewhere")
    assert result.status == 2 and "--fresh starts over" in result.err


def test_validation_on_held_out_clips_reaches_log_and_curve(train, tmp_path) -> None:
    result = train("--validation_split", 0.3, "--validate_every_n_steps", 4)
    assert result.status == 0, result.err
    history = torch.load(tmp_path / "out" / "demo-lora-state" / "history.pt", weights_only=True)
    assert [step for step, _ in history["validation"]] == [0, 4, 8]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = (tmp_path / "logs").iterdir()
    log = EventAccumulator(str(run / "network_train"))
    log.Reload()
    names = log.Tags()["scalars"]
    assert {"loss/validation", "loss/validation_sigma_0.5", "grad_norm", "loss/current"} <= {*names}
    assert any(name.startswith("loss/sigma_") for name in names)
    assert [event.step for event in log.Scalars("loss/validation")] == [0, 4, 8]


def test_a_dataset_of_its_own_to_validate_on(train, cached, tmp_path) -> None:
    other = tmp_path / "validation.toml"
    shutil.copy(cached.folder / "dataset.toml", other)
    result = train("--validation_dataset_config", other, "--max_validation_steps", 2)
    said = " ".join(result.err.split())
    assert result.status == 0 and "are also trained on" in said and "to validate on: 2" in said


def test_what_the_lora_should_leave_alone_is_not_validated_on(train, cached, tmp_path) -> None:
    text = (cached.folder / "dataset.toml").read_text(encoding="utf-8")
    other = tmp_path / "ordinary.toml"
    other.write_text(text.replace("[[datasets]]", "[[datasets]]\npreserve_prior = true"), encoding="utf-8")
    result = train("--validation_dataset_config", other, "--max_train_steps", 1)
    assert result.status == 2 and "all clips have preserve_prior; none shows" in " ".join(result.err.split())


def test_to_validate_on_the_same_dataset_is_meant(train, cached) -> None:
    same = cached.folder / "dataset.toml"
    result = train("--validation_dataset_config", same, "--max_train_steps", 1)
    assert result.status == 0 and "memorised" in result.err and "warning" not in result.err, result.err


@pytest.mark.parametrize("how", ["image", "console"])
def test_noise_levels_are_shown_and_nothing_is_trained(train, tmp_path, how) -> None:
    result = train("--show_timesteps", how, "--timestep_sampling", "shift", "--discrete_flow_shift", 3)
    assert result.status == 0 and not list((tmp_path / "out").glob("*.safetensors"))
    picture = tmp_path / "out" / "demo-lora_timesteps.png"
    assert picture.exists() == (how == "image")
    assert ("_timesteps.png" if how == "image" else "100,000 draws") in result.err


def test_a_weighting_that_says_how_sigma_draws_is_told_where_it_has_no_effect(train) -> None:
    show = ("--show_timesteps", "console", "--weighting_scheme", "logit_normal", "--timestep_sampling")
    assert "logit_normal has no effect" in " ".join(train(*show, "uniform").err.split())
    assert "no effect" not in train(*show, "sigma").err
