"""Averages of the loss by noise level, and the warning when it explodes."""

from __future__ import annotations

import json
import math

import pytest
import torch

from engine.training.watch import LEVELS, SAMPLES, Average, Watch, Window, by_level


def test_losses_fall_into_tenths_of_sigma() -> None:
    sums, counts = by_level(torch.tensor([0.0, 0.05, 0.55, 1.0]), torch.tensor([1.0, 3.0, 5.0, 7.0])).tolist()
    assert sums == [4.0, 0, 0, 0, 0, 5.0, 0, 0, 0, 7.0] and counts == [2.0, 0, 0, 0, 0, 1.0, 0, 0, 0, 1.0]


def test_an_average_has_no_bias_at_its_start_and_forgets() -> None:
    average = Average()
    assert average.add(3.0) == pytest.approx(3.0) and average.add(1.0, 2) < 3.0
    for _ in range(20 * SAMPLES):
        value = average.add(5.0)
    assert value == pytest.approx(5.0, rel=1e-6)


def test_many_samples_at_once_are_as_many_alike_one_by_one() -> None:
    together, alone = Average(), Average()
    together.add(1.0), alone.add(1.0)
    for _ in range(7):
        value = alone.add(4.0)
    assert together.add(4.0, 7) == pytest.approx(value)


def test_the_window_of_a_small_dataset_reaches_over_several_epochs() -> None:
    """In the reference the average of a dataset of one clip is its last loss."""
    losses = [float(number % 7) for number in range(3 * SAMPLES)]
    one, many = Window(1), Window(2 * SAMPLES)
    assert math.isnan(one.mean) and math.isnan(one.epoch_mean)
    one.extend(losses), many.extend(losses)
    assert one.mean == pytest.approx(sum(losses[-SAMPLES:]) / SAMPLES) and one.epoch_mean == losses[-1]
    assert many.mean == many.epoch_mean == pytest.approx(sum(losses[SAMPLES:]) / (2 * SAMPLES))


def test_a_stored_window_goes_on_as_if_it_had_not_been_stored() -> None:
    whole, first = Window(3), Window(3)
    losses = [1.0 / number for number in range(1, 2 * SAMPLES)]
    whole.extend(losses), first.extend(losses[:60])
    rest = Window(3, json.loads(json.dumps(first.losses)))
    rest.extend(losses[60:])
    assert (rest.mean, rest.epoch_mean) == (whole.mean, whole.epoch_mean)


def told(watch: Watch, losses: list[float]) -> list[int]:
    return [number for number, loss in enumerate(losses) if watch.add_loss(loss)]


def test_a_rising_loss_is_told_once_until_it_has_calmed_down() -> None:
    good, bad = [0.1] * 100, [1.0] * 100
    assert told(Watch(), good) == [] and told(Watch(), [1.0] * 100 + [0.1] * 100) == []
    assert len(told(Watch(), good + bad)) == 1 and 100 <= told(Watch(), good + bad)[0] < 110
    assert len(told(Watch(), good + bad + [0.1] * 300 + bad)) == 2


def test_the_noise_of_an_ordinary_training_is_no_reason_to_warn() -> None:
    """Losses of single steps differ by a factor of ten, since noise levels do."""
    for seed in range(5):
        noise = torch.rand(2000, generator=torch.Generator().manual_seed(seed)) ** 3 + 0.05
        assert told(Watch(), noise.tolist()) == []


def test_what_it_remembers_passes_through_json_unchanged() -> None:
    whole, first = Watch(), Watch()
    losses = [0.1 + 0.3 * (number % 7) / 7 for number in range(90)] + [3.0] * 20
    counts = [1.0, 0.0] * (LEVELS // 2)
    values = [(whole.add_levels([loss] * LEVELS, counts), whole.add_loss(loss)) for loss in losses]
    for loss in losses[:70]:
        first.add_levels([loss] * LEVELS, counts), first.add_loss(loss)
    rest = Watch(json.loads(json.dumps(first.state())))
    assert [(rest.add_levels([loss] * LEVELS, counts), rest.add_loss(loss)) for loss in losses[70:]] == values[70:]
