"""Step caches on every family's DiT: what is left out, what is looked at, and that it works however blocks run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.families import part
from engine.memory.compile import compile_blocks
from engine.memory.streaming import stream_blocks
from engine.parts.step_caching import StepCacheSettings
from engine.sampling.step_caches import StepCache, Walk
from engine.tasks.step_caching import StepCaches
from tests.sampling.stacks import Told

from .framepack import tiny as framepack
from .hunyuan_video import test_model as hunyuan_video
from .wan import test_model as wan

STEPS = 6


@dataclass(frozen=True)
class Tiny:
    """A family's tiny DiT. `looked_at(dit, seen)` notes what TeaCache should compare when the first block runs."""

    family: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, Tensor, dict[str, Any]]]
    looked_at: Callable[[nn.Module], tuple[nn.Module, int]]
    """The module that is given it, and as which of its arguments."""

    @property
    def model(self) -> Any:
        return part(self.family, "model")


TINY = {
    "wan": Tiny(
        "wan", lambda: wan.randomised(wan.TINY), lambda: wan.inputs(wan.TINY), lambda dit: (dit.blocks[0], 1)
    ),
    "hunyuan_video": Tiny(
        "hunyuan_video", hunyuan_video.randomised, hunyuan_video.inputs,
        lambda dit: (dit.double_blocks[0].img_attn_qkv, 0),
    ),
    "framepack": Tiny(
        "framepack", framepack.randomised, framepack.inputs, lambda dit: (dit.transformer_blocks[0].attn.to_q, 0)
    ),
}  # fmt: skip

RULES = {"threshold": 1000.0, "start": 0.0, "most_in_a_row": 2}
METHODS = {
    "magcache": StepCacheSettings(method="magcache", numbers=((1.0, 0.9, 1.1, 1.0),), **RULES),
    "teacache": StepCacheSettings(method="teacache", numbers=((0.2, 0.0),), **RULES),
    "first_block": StepCacheSettings(method="first_block", **RULES),
}
"""Thresholds of no consequence: what is small is for tests/sampling, here it is two steps after each that runs."""
LEFT_OUT = 3  # of STEPS: 1, 2 and 4


@pytest.fixture(params=TINY)
def tiny(request) -> Tiny:
    return TINY[request.param]


def walk_through(tiny: Tiny, dit: nn.Module, cache: Any, walk: Walk, *, steps: int = STEPS) -> list[Tensor]:
    """Predictions of some steps, each from a place a little farther."""
    x_BCTHW, timestep_B, cond = tiny.inputs()
    found = []
    with torch.no_grad():
        for step in range(steps):
            walk.go_to(step)
            given = (x_BCTHW * (1 - 0.02 * step), timestep_B - 3 * step, cond)
            found.append(tiny.model.velocity(dit, *given, **({} if cache is None else {"step_cache": cache})))
    return found


def by(method: str, tiny: Tiny, dit: nn.Module) -> tuple[list[Tensor], StepCache]:
    caches = StepCaches()
    caches.begin([0] * STEPS, first=0)
    cache = caches.make(METHODS[method], label="one")
    return walk_through(tiny, dit, cache, caches.walk), cache


def counted(tiny: Tiny, dit: nn.Module) -> list[int]:
    """The numbers of the blocks, as they run."""
    seen: list[int] = []
    for number, block in enumerate(tiny.model.blocks(dit)):
        block.register_forward_pre_hook(lambda *_, number=number: seen.append(number))
    return seen


def test_steps_that_run_are_not_changed_and_others_run_no_block(tiny):
    dit, walk = tiny.make(), Walk([0] * 4)
    plain, seen = walk_through(tiny, dit, None, walk, steps=4), counted(tiny, dit)
    cache = StepCache(Told([False, True, False, False]), walk, start=0.0, most_in_a_row=9)
    made = walk_through(tiny, dit, cache, walk, steps=4)
    assert seen == [*range(len(tiny.model.blocks(dit)))] * 3
    assert all(torch.equal(made[step], plain[step]) for step in (0, 2, 3))
    assert made[1].shape == plain[1].shape and not torch.allclose(made[1], plain[1], atol=1e-3)


def test_the_first_block_alone_runs_for_its_cache(tiny):
    dit = tiny.make()
    seen = counted(tiny, dit)
    _, cache = by("first_block", tiny, dit)
    blocks = len(tiny.model.blocks(dit))
    assert cache.left_out == LEFT_OUT
    assert seen.count(0) == STEPS and seen.count(1) == seen.count(blocks - 1) == STEPS - LEFT_OUT


def test_teacache_looks_at_what_the_first_block_makes_of_the_timestep(tiny):
    dit, looked, given = tiny.make(), [], []
    module, place = tiny.looked_at(dit)
    module.register_forward_pre_hook(lambda _, arguments: given.append(arguments[place].clone()))

    def noting(stack):
        looked.append(stack.modulated().clone())
        return stack.run()

    walk_through(tiny, dit, noting, Walk([0] * 2), steps=2)
    assert len(looked) == len(given) == 2 and all(map(torch.equal, looked, given))
    assert not torch.equal(looked[0], looked[1])


@pytest.mark.parametrize("method", METHODS)
def test_it_works_with_streamed_blocks(tiny, method):
    dit, changed = tiny.make(), tiny.make()
    blocks = tiny.model.blocks(changed)
    stream_blocks(blocks, len(blocks), device="cpu", slots=1)
    same(by(method, tiny, changed), by(method, tiny, dit))


@pytest.mark.parametrize("method", METHODS)
def test_it_works_with_compiled_and_streamed_blocks(method):
    tiny = TINY["wan"]
    dit, changed = tiny.make(), tiny.make()
    blocks = tiny.model.blocks(changed)
    compile_blocks(blocks, backend="eager")
    stream_blocks(blocks, 1, device="cpu", slots=1)
    same(by(method, tiny, changed), by(method, tiny, dit))


def same(found: tuple[list[Tensor], StepCache], wanted: tuple[list[Tensor], StepCache]) -> None:
    (made, cache), (expected, other) = found, wanted
    assert cache.left_out == other.left_out == LEFT_OUT
    assert all(torch.allclose(ours, theirs, atol=1e-6) for ours, theirs in zip(made, expected, strict=True))


@pytest.mark.parametrize("family", ["hunyuan_video", "framepack"])
def test_a_streamed_block_is_fetched_to_be_looked_at(family):
    """On a GPU its weights would lie in main memory otherwise."""
    dit, model = TINY[family].make(), TINY[family].model
    blocks = model.blocks(dit)
    stream = stream_blocks(blocks, len(blocks), device="cpu", slots=1)
    stream.need(len(blocks) - 1)
    assert stream._held == [len(blocks) - 1]
    blocks[0].modulated(torch.zeros(1, 3, 64), torch.zeros(1, 64))
    assert stream._held == [0]


@pytest.mark.parametrize("method", METHODS)
def test_every_row_of_a_batch_has_its_own_residual(tiny, method):
    dit = tiny.make()
    together, _ = by(method, tiny, dit)
    for row in range(len(tiny.inputs()[0])):
        alone = replace(tiny, inputs=lambda row=row: row_of(tiny.inputs(), row))
        apart, _ = by(method, alone, dit)
        assert all(torch.allclose(one[row], two[0], atol=1e-4) for one, two in zip(together, apart, strict=True))


def row_of(given: tuple[Tensor, Tensor, dict[str, Any]], row: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """One sample of a batch."""
    x_BCTHW, timestep_B, cond = given
    kept = {name: value[row : row + 1] for name, value in cond.items() if isinstance(value, (list, Tensor))}
    return x_BCTHW[row : row + 1], timestep_B[row : row + 1], {**cond, **kept}
