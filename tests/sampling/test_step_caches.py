"""The rules that all step caches share: what always runs, what stands in for a step, and when a cache begins anew."""

from __future__ import annotations

import pytest
import torch

from engine.sampling.guidance import guided, guided_batch
from engine.sampling.samplers import sample
from engine.sampling.step_caches import StepCache, Walk, relative_change

from .stacks import Blocks, Told, steps_run, told, walked

ANY = [torch.ones(1, 2, 2)] * 10


def runs(*, steps: int = 10, **rules: object) -> list[int]:
    """With a method that would leave out everything."""
    return steps_run(Told([True] * steps), ANY[:1] * steps, **rules)


def test_the_first_and_the_last_step_run_whatever_is_found():
    assert runs() == [0, 9] and runs(steps=1) == [0] and runs(steps=2) == [0, 1]


@pytest.mark.parametrize(("share", "first"), [(0.0, 1), (0.19, 1), (0.2, 2), (0.35, 3), (1.0, 10)])
def test_a_share_of_the_start_runs(share, first):
    assert runs(start=share) == [*range(first), *([9] if first < 10 else [])]


def test_only_so_many_are_left_out_in_a_row():
    assert runs(most=2) == [0, 3, 6, 9] and runs(most=1) == [0, 2, 4, 6, 8, 9]


def test_a_new_expert_begins_anew_and_has_a_start_of_its_own():
    assert runs(experts=[1] * 4 + [0] * 6) == [0, 4, 9]
    assert runs(experts=[1] * 4 + [0] * 6, start=0.5) == [0, 1, 4, 5, 6, 9]


def test_a_walk_that_begins_late_counts_its_own_steps_for_the_start():
    walk = Walk([0] * 10, first=6)
    assert walk.steps == 4
    found = []
    for index in range(4):
        walk.go_to(index)
        found.append((walk.in_start(0.5), walk.at_end, walk.place))
    assert found == [
        (True, False, (6, 10)),
        (True, False, (7, 10)),
        (False, False, (8, 10)),
        (False, True, (9, 10)),
    ]


def test_a_step_that_is_left_out_adds_what_the_last_run_added():
    cache, walk = told([True] * 4)
    blocks = Blocks(2)
    stacks = [blocks.on(torch.tensor([[[x]]]), [4 * x, 6 * x]) for x in (1.0, 2.0, 3.0, 4.0)]
    assert [value.item() for value in walked(cache, walk, stacks)] == [11.0, 12.0, 13.0, 44.0]
    assert blocks.runs == [2, 2] and cache.left_out == 2


def test_a_prediction_that_was_not_asked_for_in_the_step_before_begins_anew():
    """Guidance that is left out in some steps: what the blocks added long ago is of no use."""
    method = Told([True] * 6)
    walk = Walk([0] * 6)
    cache, blocks = StepCache(method, walk, start=0.0, most_in_a_row=1000), Blocks(1)
    for step in (0, 1, 3, 4, 5):
        walk.go_to(step)
        cache(blocks.on(torch.zeros(1, 1, 1), [1.0]))
    assert blocks.runs == [3] and cache.left_out == 2  # 0, 3 and the last
    assert method.forgot == 2


def velocity_through(cache, blocks, factor):
    return lambda x, timestep_B: cache(blocks.on(x, [factor * x]))


def steps_of(walk, velocity, steps=4):
    """A sampled video, whose steps the walk is told."""
    following = iter(range(steps))

    def counted(x, timestep_B):
        walk.go_to(next(following))
        return velocity(x, timestep_B)

    return sample(counted, torch.ones(1, 1, 1, 2, 2), solver="euler", steps=steps, shift=1.0)


def test_conditional_and_unconditional_are_kept_apart():
    """The reference has one counter and one residual for both: with guidance it counts twice as fast, and adds to one
    prediction what belongs to the other."""
    walk, made = Walk([0] * 4), []

    def separate(factor):
        blocks = Blocks(1)
        made.append(blocks)
        cache = StepCache(Told([False, True, True, False]), walk, start=0.0, most_in_a_row=9)
        return velocity_through(cache, blocks, factor)

    apart = steps_of(walk, guided(separate(1.0), separate(-1.0), 3.0))
    assert [blocks.runs for blocks in made] == [[2], [2]]
    cache, both = StepCache(Told([False, True, True, False]), walk, start=0.0, most_in_a_row=9), Blocks(1)
    signs = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1, 1)
    batched = steps_of(walk, guided_batch(velocity_through(cache, both, signs), 3.0))
    assert both.runs == [2] and torch.equal(apart, batched)


def test_the_relative_change_is_of_means():
    before, now = torch.tensor([1.0, -3.0, 0.0, 4.0]), torch.tensor([2.0, -3.0, -2.0, 3.0])
    assert relative_change(now, before).item() == pytest.approx((1 + 0 + 2 + 1) / 8)
    assert relative_change(now.bfloat16(), before.bfloat16()).dtype == torch.float32
