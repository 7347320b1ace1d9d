"""MagCache: which steps are left out, and measuring the ratios."""

from __future__ import annotations

import pytest
import torch

from engine.parts.hunyuan_step_caches import RATIOS_540P
from engine.sampling.magcache import MagCache, RatioCalibration, spread
from engine.sampling.step_caches import Walk

from .stacks import Blocks, steps_run, walked

USUAL = {"start": 0.2, "threshold": 0.24, "most": 6}

# Recorded from musubi-tuner 30c658c4 (hunyuan_video_packed_inference.py), one prediction a step: the steps that run.
RUN_BY_THE_REFERENCE = [
    (50, {}, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14, 18, 23, 29, 34, 41, 46, 48, 49]),
    (25, {}, [0, 1, 2, 3, 4, 8, 12, 17, 23, 24]),
    (25, {"start": 0.0, "threshold": 0.1}, [0, 1, 3, 6, 8, 11, 15, 19, 22, 24]),
    (8, {"most": 1}, [0, 2, 4, 6, 7]),
    (1, {}, [0]),
]


def run_by(ratios, steps, *, threshold, **rules):
    return steps_run(MagCache(ratios, threshold=threshold), [torch.ones(1, 1, 1)] * steps, **rules)


@pytest.mark.parametrize(("steps", "changed", "run"), RUN_BY_THE_REFERENCE)
def test_the_same_steps_run_as_in_the_reference(steps, changed, run):
    assert run_by([RATIOS_540P], steps, **{**USUAL, **changed}) == run


def test_ratios_are_spread_over_other_numbers_of_steps():
    assert spread([1.0, 2.0, 3.0], 5) == [1.0, 1.0, 2.0, 3.0, 3.0]  # 0, 0.5, 1, 1.5, 2, halves to the even one
    assert spread([1.0, 2.0, 3.0], 2) == [1.0, 3.0] and spread([1.0, 2.0], 1) == [2.0]


def test_each_expert_has_ratios_of_its_own_that_for_much_noise_first():
    """By hand: the first expert's step 2 is an error of 0.5, the second's are none."""
    ratios = [[1.0, 1.0, 1.5, 1.0], [1.0, 1.0, 1.0]]
    assert run_by(ratios, 7, threshold=0.1, experts=[1] * 4 + [0] * 3) == [0, 2, 4, 6]
    assert run_by(ratios[::-1], 7, threshold=0.1, experts=[1] * 3 + [0] * 4) == [0, 3, 5, 6]


def test_a_walk_that_begins_late_takes_the_ratios_of_its_end():
    ratios = [1.0] * 6 + [1.0, 1.0, 3.0, 1.0]
    walk, found = Walk([0] * 10, first=6), []
    method = MagCache([ratios], threshold=0.1)
    for index in range(4):
        walk.go_to(index)
        method.look(Blocks(1).on(torch.zeros(1), [1.0]), walk)
        found.append(method.finds_little_change())
    assert found == [True, True, False, False]  # the third step's ratio is 3


def on(residuals):
    blocks = Blocks(1)
    return [blocks.on(torch.ones_like(residual), [residual]) for residual in residuals]


def test_calibration_measures_ratio_spread_and_turn():
    residuals = [
        torch.tensor([[[3.0, 4.0], [0.0, 2.0]]]),
        torch.tensor([[[6.0, 8.0], [0.0, 2.0]]]),  # ratios 2 and 1, no turn
        torch.tensor([[[6.0, 8.0], [2.0, 0.0]]]),  # ratios 1 and 1, one of two tokens turns by a right angle
    ]
    walk = Walk([0] * 3)
    calibration = RatioCalibration(walk, flag="--magcache_mag_ratios")
    made = walked(calibration, walk, on(residuals))
    assert all(torch.equal(after, 1 + residual) for after, residual in zip(made, residuals, strict=True))
    ratios, spreads, turns = calibration.report()
    assert ratios == "--magcache_mag_ratios 1.00000,1.50000,1.00000"
    assert spreads.endswith(": 0.70711,0.00000") and turns.endswith(": 0.00000,0.50000")


def test_calibration_gives_each_expert_a_list():
    walk = Walk([1, 1, 0, 0, 0])
    calibration = RatioCalibration(walk)
    walked(calibration, walk, on([torch.full((1, 2, 2), size) for size in (1.0, 2.0, 5.0, 5.0, 10.0)]))
    assert calibration.report()[0] == "--step_cache_ratios 1.00000,2.00000;1.00000,1.00000,2.00000"


def test_a_walk_of_one_step_has_nothing_to_measure():
    walk = Walk([0])
    calibration = RatioCalibration(walk)
    walked(calibration, walk, on([torch.ones(1, 1, 1)]))
    assert calibration.report()[0] == "--step_cache_ratios 1.00000"
