"""MagCache: which steps are left out, what stands in for them, and measuring the ratios."""

from __future__ import annotations

import pytest
import torch

from engine.families.framepack.magcache import PUBLISHED_RATIOS
from engine.sampling.guidance import guided, guided_batch
from engine.sampling.magcache import Calibration, MagCache, skipped_steps, spread
from engine.sampling.samplers import sample

USUAL = {"retention_ratio": 0.2, "threshold": 0.24, "most_in_a_row": 6}

# Recorded from musubi-tuner 30c658c4 (hunyuan_video_packed_inference.py), one prediction a step: the steps that run.
RUN_BY_THE_REFERENCE = [
    (50, {}, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14, 18, 23, 29, 34, 41, 46, 48, 49]),
    (25, {}, [0, 1, 2, 3, 4, 8, 12, 17, 23, 24]),
    (25, {"retention_ratio": 0.0, "threshold": 0.1}, [0, 1, 3, 6, 8, 11, 15, 19, 22, 24]),
    (8, {"most_in_a_row": 1}, [0, 2, 4, 6, 7]),
    (1, {}, [0]),
]


@pytest.mark.parametrize(("steps", "changed", "run"), RUN_BY_THE_REFERENCE)
def test_the_same_steps_run_as_in_the_reference(steps, changed, run):
    skipped = skipped_steps(PUBLISHED_RATIOS, steps=steps, **{**USUAL, **changed})
    assert [step for step, left_out in enumerate(skipped) if not left_out] == run


def test_ratios_are_spread_over_other_numbers_of_steps():
    assert spread([1.0, 2.0, 3.0], 5) == [1.0, 1.0, 2.0, 3.0, 3.0]  # 0, 0.5, 1, 1.5, 2, halves to the even one
    assert spread([1.0, 2.0, 3.0], 2) == [1.0, 3.0] and spread([1.0, 2.0], 1) == [2.0]


def test_the_first_and_the_last_step_run_whatever_is_asked():
    assert skipped_steps([1.0], steps=6, retention_ratio=0.0, threshold=1000, most_in_a_row=1000) == [
        False, True, True, True, True, False,
    ]  # fmt: skip


class Blocks:
    """A stack of blocks that adds what it is told, and counts."""

    def __init__(self):
        self.runs = 0

    def __call__(self, before, added):
        self.runs += 1
        return before + added


def test_a_step_that_is_left_out_adds_what_the_last_one_added():
    cache, blocks = MagCache([False, True, True, False]), Blocks()
    made = [cache(torch.tensor([x]), lambda x=x: blocks(torch.tensor([x]), 10 * x)) for x in (1.0, 2.0, 3.0, 4.0)]
    assert [value.item() for value in made] == [11.0, 12.0, 13.0, 44.0] and blocks.runs == 2


def velocity_through(cache, blocks, factor):
    return lambda x, timestep_B: cache(x, lambda: blocks(x, factor * x))


def walk(velocity, steps):
    return sample(velocity, torch.ones(1, 1, 1, 2, 2), solver="euler", steps=steps, shift=1.0)


def test_conditional_and_unconditional_are_kept_apart():
    """The reference has one counter and one residual for both: with guidance it counts twice as fast, and adds to one
    prediction what belongs to the other."""
    skipped = [False, True, True, False]
    runs = []

    def separate(factor):
        blocks = Blocks()
        runs.append(blocks)
        return velocity_through(MagCache(skipped), blocks, factor)

    made = walk(guided(separate(1.0), separate(-1.0), 3.0), 4)
    assert [blocks.runs for blocks in runs] == [2, 2]
    both_blocks, signs = Blocks(), torch.tensor([1.0, -1.0]).view(2, 1, 1, 1, 1)
    both = velocity_through(MagCache(skipped), both_blocks, signs)
    batched = walk(guided_batch(both, 3.0), 4)
    assert both_blocks.runs == 2 and torch.equal(made, batched)


def test_calibration_measures_ratio_spread_and_turn():
    calibration = Calibration()
    residuals = [
        torch.tensor([[[3.0, 4.0], [0.0, 2.0]]]),
        torch.tensor([[[6.0, 8.0], [0.0, 2.0]]]),  # ratios 2 and 1, no turn
        torch.tensor([[[6.0, 8.0], [2.0, 0.0]]]),  # ratios 1 and 1, one of two tokens turns by a right angle
    ]
    for residual in residuals:
        before = torch.ones(1, 2, 2)
        assert torch.equal(calibration(before, lambda r=residual: torch.ones(1, 2, 2) + r), before + residual)
    ratios, spreads, turns = calibration.report()
    assert ratios == "--magcache_mag_ratios 1.00000,1.50000,1.00000"
    assert spreads.endswith(": 0.70711,0.00000") and turns.endswith(": 0.00000,0.50000")


def test_a_walk_of_one_step_has_nothing_to_measure():
    calibration = Calibration()
    calibration(torch.zeros(1, 1, 1), lambda: torch.ones(1, 1, 1))
    assert calibration.report()[0] == "--magcache_mag_ratios 1.00000"
