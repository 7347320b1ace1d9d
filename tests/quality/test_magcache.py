"""MagCache is guarded by two measures, and seven faults show that both can fail.

Distance: how far its latents lie from those of all steps, where 1 is how far a video lies that costs the same without
a cache, in as few steps as MagCache runs. The right one came to 0.117, what does harm to 0.177 and more; a CPU without
AVX gives 4 % more of each. The judge's verdicts are too coarse for that: ratios that are ignored, at 0.22, change none
of them.

Steps: which ones the blocks ran in, for each section and prediction of each clip. It finds what does little harm to
these clips.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from torch import Tensor

from engine.sampling.magcache import Run
from engine.tasks import studio

from .broken_magcaches import BROKEN, RIGHT, Parts
from .conftest import Base
from .making import FRAMEPACK, Comparison, Made, latents_apart, make
from .settings import MAGCACHE, STEPS

CLIPS = (38, 42, 45)  # of those that Pocket FramePack makes right in so few steps
CACHES = len(CLIPS) * 2 * 2  # two sections, two predictions
RUN = (0, 1, 4, 7, 9, 11)
"""The steps that the published rule lets run, of STEPS, with RATIOS and the usual options; followed by hand."""
FARTHEST = 0.15


@dataclass(frozen=True)
class Cached:
    """Clips made with a MagCache, and the steps that ran, by cache."""

    made: Made
    steps: list[list[int]]


Cache = Callable[[Parts], Cached]


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """The clips with a MagCache of these parts."""

    def clips(parts: Parts) -> Cached:
        steps: list[list[int]] = []

        def noting(skipped: list[bool]) -> Callable[[Tensor, Run], Tensor]:
            cache, numbers = parts.cache(skipped), count()
            ran: list[int] = []
            steps.append(ran)

            def call(before_BLD: Tensor, run: Run) -> Tensor:
                step = next(numbers)

                def noted() -> Tensor:
                    ran.append(step)
                    return run()

                return cache(before_BLD, noted)

            return call

        monkeypatch.setattr(studio, "skipped_steps", parts.skipped_steps)
        monkeypatch.setattr(studio, "MagCache", noting)
        return Cached(make(tmp_path / "cached", FRAMEPACK, *MAGCACHE.flags, numbers=CLIPS, steps=STEPS), steps)

    return clips


@pytest.fixture(scope="module")
def fewer(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The clips without a cache, in as many steps as the right MagCache runs."""
    return make(tmp_path_factory.mktemp("fewer") / "steps", FRAMEPACK, numbers=CLIPS, steps=len(RUN))


def faults(found: Cached, base: Made, fewer: Made) -> dict[str, str]:
    """What is wrong, by measure."""
    distance = latents_apart(base, found.made) / latents_apart(base, fewer)
    told = {}
    if distance > FARTHEST:
        told["distance"] = f"{distance:.3f} as far from the clips of all steps as clips of {len(RUN)} steps"
    if found.steps != [list(RUN)] * CACHES:
        told["steps"] = f"{found.steps} ran"
    return told


def test_magcache_is_far_nearer_than_fewer_steps(base: Base, fewer: Made, cached: Cache) -> None:
    found, all_steps = cached(RIGHT), base(FRAMEPACK, CLIPS)
    assert faults(found, all_steps, fewer) == {}
    beside = Comparison(all_steps, found.made)
    assert beside.lost["score"] <= 0, str(beside)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_one_is_found(name: str, base: Base, fewer: Made, cached: Cache) -> None:
    parts, measures = BROKEN[name]
    found = faults(cached(parts), base(FRAMEPACK, CLIPS), fewer)
    assert measures <= set(found), found
