"""The names of what a training saves: what is written is found again, and nobody else's is."""

from __future__ import annotations

import pytest

from engine.contract import saved_names
from engine.contract.saved_names import AVERAGE, BEST, after_epoch, after_step

ENDINGS = ["", AVERAGE, "_high_noise", "_high_noise" + AVERAGE]
MOMENTS = ["", after_step(500), after_epoch(12), BEST]


def test_they_are_musubi_tuner_s() -> None:
    assert saved_names.lora("cat") == "cat.safetensors"
    assert saved_names.lora("cat", after_step(500)) == "cat-step00000500.safetensors"
    assert saved_names.state("cat", after_epoch(12)) == "cat-000012-state"


def test_the_record_keeps_its_name() -> None:
    """Trainings that were started earlier are found by it."""
    assert saved_names.record("cat") == "cat-training.json"


@pytest.mark.parametrize("name", ["cat", "a.b (c)", "cat-step00000001", "cat-best"])
def test_what_is_saved_is_found_again(name: str) -> None:
    for moment in MOMENTS:
        assert all(
            saved_names.loras_of(name, ENDINGS, best=True).fullmatch(saved_names.lora(name, moment, ending=ending))
            for ending in ENDINGS
        )
        if moment != BEST:
            assert saved_names.states_of(name).fullmatch(saved_names.state(name, moment))


@pytest.mark.parametrize(
    "other", ["cats", "cat_ema", "cat-best", "cat-2", "cat_high_noise", "cat-step1", "bobcat", "cat.old"]
)
def test_another_training_s_is_not(other: str) -> None:
    assert not saved_names.loras_of("cat", [""], best=False).fullmatch(saved_names.lora(other, after_step(3)))
    assert not saved_names.states_of("cat").fullmatch(saved_names.state(other, after_step(3)))


def test_a_name_that_would_be_shared_is_among_those_taken() -> None:
    assert saved_names.taken("cat", ["", AVERAGE], best=True) == ["cat", "cat-best", "cat_ema", "cat_ema-best"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_numbers_come_off(moment: str) -> None:
    numbered = moment not in ("", BEST)
    assert saved_names.is_numbered("cat" + moment) is numbered
    assert saved_names.unnumbered("cat" + moment) == ("cat" if numbered else "cat" + moment)
    if moment != BEST:
        state = saved_names.state("cat", moment)
        assert saved_names.trained_name(state) == saved_names.trained_name(state + ".previous") == "cat"
    assert saved_names.trained_name("cat" + moment) == ""
