"""`--save_best_validation`: which LoRA is kept, across interruptions and refusing disks."""

from __future__ import annotations

from math import nan
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from engine.contract.errors import DiskError
from engine.contract.events import Artifact, Log, Warning_
from engine.training import loop
from engine.training.checkpoints import Keep
from engine.training.states import find_latest_state, read_position
from engine.training.validation import Validation
from tests.training.test_loop import Stopping
from tests.training.toy_job import Job, job

FALLING_AND_RISING = {0: 1.0, 2: 0.8, 4: 0.5, 6: 0.7, 8: 0.6, 10: 0.9}
EVERY_TWO = Keep(save_every_n_steps=2)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Losses by step, in place of validating; a test may change them."""
    losses = dict(FALLING_AND_RISING)

    def found(setup, validation, group, *, say) -> dict[str, float]:
        return {"loss/validation": losses[setup.scheduler.last_epoch]}

    monkeypatch.setattr(loop, "validation_losses", found)
    return losses


def validating(folder: Path, *, keep_best: bool = True, measure: str = "a", when=None, **values) -> Job:
    validation = Validation(
        clips=lambda first, every: (), count=1, sigmas=[0.5], seed=1, keep_best=keep_best, measure=measure,
        **(when or {"every_n_steps": 2}),
    )  # fmt: skip
    return job(folder, **{"keep": EVERY_TWO, "setup": {"validation": validation}, **values})


def same(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return all(value.equal(second[name]) for name, value in first.items())


def said_of(path: Path) -> tuple[str, str]:
    """Steps and epoch that the file names."""
    with safe_open(path, "pt") as file:
        return file.metadata()["ss_steps"], file.metadata()["ss_epoch"]


def logged(some: Job) -> str:
    return " ".join(event.message for event in some.said(Log))


def saved_as_best(some: Job) -> int:
    return sum(Path(event.path).name == "toy-best.safetensors" for event in some.said(Artifact))


def test_the_lowest_so_far_is_kept_and_named_at_the_end(measured, tmp_path: Path) -> None:
    some = validating(tmp_path)
    outcome = some.run()
    best = tmp_path / "toy-best.safetensors"
    assert same(best, tmp_path / "toy-step00000004.safetensors") and saved_as_best(some) == 2
    assert said_of(best) == ("4", "1") and outcome.path == tmp_path / "toy.safetensors"
    assert "The lowest validation loss was 0.5000, after step 4: that LoRA is toy-best." in logged(some)


@pytest.mark.parametrize("when", [{"every_n_steps": 5}, {"every_n_epochs": 1}])
@pytest.mark.parametrize(("step", "epoch"), [(5, 1), (10, 2)])
def test_its_epoch_is_the_one_that_has_just_ended(measured, tmp_path: Path, when, step: int, epoch: int) -> None:
    measured |= {5: 0.9, 10: 0.9, step: 0.1}
    validating(tmp_path, when=when).run()
    assert said_of(tmp_path / "toy-best.safetensors") == (str(step), str(epoch))


def test_what_never_beats_the_model_alone_is_not_kept(measured, tmp_path: Path) -> None:
    measured[0] = 0.1
    some = validating(tmp_path)
    some.run()
    assert not (tmp_path / "toy-best.safetensors").exists()
    assert "No validation loss was lower than before the first step, 0.1000: there is no toy-best." in logged(some)


def test_it_is_not_kept_unless_asked_for(measured, tmp_path: Path) -> None:
    some = validating(tmp_path, keep_best=False)
    some.run()
    assert not (tmp_path / "toy-best.safetensors").exists() and "lowest" not in logged(some)


@pytest.mark.parametrize(("where", "kept"), [(0, "4"), (4, "8"), (10, "4")])
def test_a_loss_that_is_no_number_is_never_the_lowest(measured, tmp_path: Path, where: int, kept: str) -> None:
    measured[where] = nan
    validating(tmp_path).run()
    assert said_of(tmp_path / "toy-best.safetensors")[0] == kept


def test_the_average_that_was_validated_lies_beside_it(measured, tmp_path: Path) -> None:
    validating(tmp_path, ema=0.8).run()
    for ema in ("", "_ema"):
        assert same(tmp_path / f"toy{ema}-best.safetensors", tmp_path / f"toy{ema}-step00000004.safetensors")
    assert not same(tmp_path / "toy_ema-best.safetensors", tmp_path / "toy-best.safetensors")


def test_it_leaves_no_trace_in_the_training(measured, tmp_path: Path) -> None:
    plain, some = job(tmp_path / "plain", dropout=0.3), validating(tmp_path / "some", dropout=0.3)
    plain.run()
    some.run()
    assert same(tmp_path / "plain" / "toy.safetensors", tmp_path / "some" / "toy.safetensors")


# ----------------------------------------------------------------------------------------------------------- going on


def stopped(folder: Path, step: int, **values) -> Path:
    """The state of a training that was stopped after a step."""
    Stopping(validating(folder, **values), step).run()
    state = find_latest_state(folder, "toy")
    assert state is not None and read_position(state).step == step
    return state


def test_a_training_that_goes_on_compares_with_what_it_had(measured, tmp_path: Path) -> None:
    state = stopped(tmp_path, 5)
    rest = validating(tmp_path)
    rest.resume(state)
    assert saved_as_best(rest) == 0 and said_of(tmp_path / "toy-best.safetensors")[0] == "4"
    assert "after step 4: that LoRA is toy-best." in logged(rest)


def test_a_state_includes_the_validation_of_its_own_step(measured, tmp_path: Path) -> None:
    validating(tmp_path, keep=Keep(save_every_n_steps=4, save_state=True)).run()
    best = read_position(tmp_path / "toy-step00000004-state").best
    assert best == {"step": 4, "loss": 0.5, "measure": "a"}


def test_other_clips_levels_or_noise_do_not_compare(measured, tmp_path: Path) -> None:
    rest = validating(tmp_path, measure="b")
    rest.resume(stopped(tmp_path, 5))
    assert saved_as_best(rest) == 2 and said_of(tmp_path / "toy-best.safetensors")[0] == "8"
    assert logged(rest).count("the best LoRA is chosen anew from step 6 on") == 1


def test_a_best_that_does_not_compare_is_not_named_at_the_end(measured, tmp_path: Path) -> None:
    rest = validating(tmp_path, measure="b", when={"every_n_steps": 100})
    rest.resume(stopped(tmp_path, 5))
    assert "lowest" not in logged(rest)


def test_a_training_that_did_not_ask_for_it_before_starts_with_its_next_validation(measured, tmp_path: Path) -> None:
    rest = validating(tmp_path)
    rest.resume(stopped(tmp_path, 5, keep_best=False))
    assert said_of(tmp_path / "toy-best.safetensors")[0] == "8" and "anew" not in logged(rest)


def test_a_training_that_does_not_ask_for_it_any_more_still_remembers(measured, tmp_path: Path) -> None:
    between = validating(tmp_path, keep_best=False, max_steps=7)
    state = stopped(tmp_path, 5)
    between.setup.control.request_stop()
    between.resume(state)
    later = find_latest_state(tmp_path, "toy")
    assert later is not None and later != state and read_position(later).best["step"] == 4


# ------------------------------------------------------------------------------------------------- a disk that refuses


def test_what_the_disk_refuses_is_not_the_best(measured, tmp_path: Path) -> None:
    """The next that is lower than what lies there is kept, though not as low as the one that was refused."""
    some = validating(tmp_path, keep=Keep())
    writers, write = some.setup.checkpoints._writers, some.setup.checkpoints._writers[""]

    def refusing(path: Path, step: int, epoch: int) -> None:
        if step == 4:
            raise DiskError(f"{path} could not be written: the disk is full.", "Free some space.")
        write(path, step, epoch)

    writers[""] = refusing
    some.run()
    assert said_of(tmp_path / "toy-best.safetensors")[0] == "8"
    (warning,) = some.said(Warning_)
    assert "Step 4 is not saved." in warning.message and "Training goes on" in warning.message
