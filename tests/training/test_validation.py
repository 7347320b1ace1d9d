"""The loss on held-out clips: the same numbers whatever else the training does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.contract.events import Metric, Progress
from engine.training.validation import Validation
from tests.training.toy_job import Job, batches, job


def clips(first: int, every: int):
    """Three clips that no training sees."""
    for number in range(first, 3, every):
        yield f"held{number}", next(batches(0, 0, count=10 + number))


def validating(folder: Path, *, seed: int = 42, sigmas=(0.1, 0.5, 0.9), when=None, **values) -> Job:
    setup = values.pop("setup", {})
    validation = Validation(clips=clips, count=3, sigmas=sigmas, seed=seed, **(when or {"every_n_epochs": 1}))
    return job(folder, setup={**setup, "validation": validation}, **values)


def found(some: Job) -> dict[int, dict[str, float]]:
    return {event.step: event.values for event in some.said(Metric) if "loss/validation" in event.values}


def losses(some: Job) -> list[float]:
    return [event.values["loss/current"] for event in some.said(Metric) if "loss/current" in event.values]


def test_it_comes_before_training_and_after_each_epoch_and_is_the_mean_over_levels(tmp_path: Path) -> None:
    some = validating(tmp_path)
    some.run()
    values = found(some)
    assert list(values) == [0, 5, 10]
    assert set(values[0]) == {"loss/validation", *(f"loss/validation_sigma_{sigma}" for sigma in (0.1, 0.5, 0.9))}
    for one in values.values():
        assert one["loss/validation"] == pytest.approx(sum(list(one.values())[1:]) / 3)
    assert any(event.label == "Validating" and event.total == 3 for event in some.said(Progress))


def test_it_comes_after_steps(tmp_path: Path) -> None:
    some = validating(tmp_path, when={"every_n_steps": 4})
    some.run()
    assert list(found(some)) == [0, 4, 8]


def test_it_leaves_no_trace_in_the_training(tmp_path: Path) -> None:
    plain = job(tmp_path / "plain", dropout=0.3)
    plain.run()
    watched = validating(tmp_path / "watched", dropout=0.3, when={"every_n_steps": 1})
    watched.run()
    assert losses(watched) == losses(plain)
    state = watched.network.state()
    assert all(torch.equal(value, state[name]) for name, value in plain.network.state().items())


def test_it_compares_between_trainings_of_other_seeds_and_more_levels(tmp_path: Path) -> None:
    first, other = validating(tmp_path / "a", lr=0.0), validating(tmp_path / "b", lr=0.0, seed=42, sigmas=(0.5, 0.7))
    noise = validating(tmp_path / "c", lr=0.0, seed=7)
    for some in (first, other, noise):
        some.run()
    values = [found(some)[0]["loss/validation_sigma_0.5"] for some in (first, other, noise)]
    assert values[0] == values[1] != values[2]
    assert len({one["loss/validation"] for one in found(first).values()}) == 1  # nothing learnt, nothing changed


def test_dropout_is_off(tmp_path: Path) -> None:
    with_it, without = (validating(tmp_path / str(rate), lr=0.0, dropout=rate) for rate in (0.9, None))
    for some in (with_it, without):
        for name, parameter in some.network.named_parameters():
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
        some.run()
    assert found(with_it)[0] == found(without)[0]


def test_a_training_that_goes_on_does_not_validate_before_its_first_step(tmp_path: Path) -> None:
    from tests.training.test_loop import Stopping

    Stopping(validating(tmp_path), 3).run()
    rest = validating(tmp_path)
    rest.resume(tmp_path / "toy-step00000003-state")
    assert list(found(rest)) == [5, 10]
