"""The first-block cache: what is compared with what, what stands in for the rest, and measuring the changes."""

from __future__ import annotations

import pytest
import torch

from engine.sampling.first_block import ChangeCalibration, FirstBlock
from engine.sampling.step_caches import StepCache, Walk

from .stacks import Blocks, steps_run, walked


def sizes(*values: float) -> list[torch.Tensor]:
    return [torch.full((1, 2, 2), value) for value in values]


def test_the_first_block_is_compared_with_the_last_full_run():
    """Each step is 4 % more than the one before: from the one that ran last it is 4 %, 8 %, 12 %."""
    added = sizes(*(1.04**step for step in range(8)))
    assert steps_run(FirstBlock(threshold=0.1), added) == [0, 3, 6, 7]
    assert steps_run(FirstBlock(threshold=0.01), added) == list(range(8))


def test_a_step_at_the_threshold_runs():
    assert steps_run(FirstBlock(threshold=0.25), sizes(1.0, 1.25, 1.5, 1.5, 1.5)) == [0, 1, 4]


def test_the_first_block_runs_always_and_the_rest_is_what_it_was():
    walk, blocks = Walk([0] * 4), Blocks(3)
    cache = StepCache(FirstBlock(threshold=0.5), walk, start=0.0, most_in_a_row=9)
    stacks = [
        blocks.on(torch.full((1, 1, 1), before), [first, second, third])
        for before, first, second, third in [
            (1.0, 10.0, 100.0, 1000.0),
            (2.0, 11.0, 200.0, 2000.0),
            (3.0, 12.0, 300.0, 3000.0),
            (4.0, 13.0, 400.0, 4000.0),
        ]
    ]
    made = [value.item() for value in walked(cache, walk, stacks)]
    assert made == [1111.0, 1113.0, 1115.0, 4417.0] and blocks.runs == [4, 2, 2]


def test_blocks_that_add_nothing_are_run():
    """0 / 0 says nothing about the change."""
    assert steps_run(FirstBlock(threshold=0.5), sizes(*[0.0] * 4)) == [0, 1, 2, 3]


def test_one_number_a_step_is_read_from_the_device(monkeypatch):
    read = []
    real = torch.Tensor.__float__
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: read.append(1) or real(self))
    steps_run(FirstBlock(threshold=0.1), sizes(*(1.04**step for step in range(10))), start=0.3)
    assert len(read) == 10 - 3 - 1


def test_calibration_prints_the_changes_and_the_middle_one():
    walk, blocks = Walk([0] * 4), Blocks(2)
    calibration = ChangeCalibration(walk)
    stacks = [blocks.on(torch.zeros(1, 2, 2), [first, 1.0]) for first in sizes(1.0, 1.5, 1.65, 1.98)]
    made = walked(calibration, walk, stacks)
    assert [value.flatten()[0].item() for value in made] == pytest.approx([2.0, 2.5, 2.65, 2.98])
    assert blocks.runs == [4, 4]
    assert calibration.report() == [
        "--step_cache_threshold 0.20000",
        "change of what the first block adds: 0.50000,0.10000,0.20000",
    ]
