"""Step caches are guarded by two measures, and faults show that both can fail.

Distance: how far the latents lie from those of all steps, where 1 is how far a video lies that costs about the same
without a cache, in fewer steps. MagCache on FramePack came to 0.117, what does harm to 0.177 and more; a CPU without
AVX gives 4 % more of each. On Wan the measure is coarser: TeaCache came to 0.844, its worst fault to 1.83; the
first-block cache to 0.856, what does harm to 1.09 and more. The judge's verdicts are too coarse for either: ratios that
are ignored, at 0.22, change none of them.

Steps: which ones the blocks ran in, for each section and prediction of each clip. It finds what does little harm to
these clips. What the first block says depends on the last digits of sums, so there only the number of steps is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.tasks import step_caching

from .broken_step_caches import ANY, OWN, RIGHT, Parts
from .conftest import Base
from .making import Comparison, Made, latents_apart, make
from .settings import FIRST_BLOCK_SHORT, MAGCACHE, TEACACHE_SHORT, Setting, make_with
from .skipping import noted


@dataclass(frozen=True)
class Guarded:
    """A setting under guard. `run`: the steps that run, for each cache; or how many in the mean, a range."""

    setting: Setting
    method: str
    clips: tuple[int, ...]
    caches: int  # a clip
    run: tuple[int, ...] | tuple[float, float]
    fewer: int  # steps that cost about the same
    farthest: float
    faults: dict[str, tuple[Parts, set[str]]]


CASES = {
    "magcache": Guarded(
        MAGCACHE, "magcache",
        clips=(38, 42, 45),  # of those that Pocket FramePack makes right in so few steps
        caches=2 * 2,  # two sections, two predictions
        run=(0, 1, 4, 7, 9, 11),  # that the published rule lets run, with RATIOS; followed by hand
        fewer=6, farthest=0.15, faults={**ANY, **OWN["magcache"]},
    ),
    "teacache": Guarded(
        TEACACHE_SHORT, "teacache", clips=(0, 1), caches=2, run=(0, 1, 4, 7, 9, 10, 11), fewer=7, farthest=1.0,
        faults=OWN["teacache"],
    ),
    "first_block": Guarded(
        FIRST_BLOCK_SHORT, "first_block", clips=(0, 1), caches=2, run=(8.0, 9.9), fewer=9, farthest=0.97,
        faults=OWN["first_block"],
    ),
}  # fmt: skip
FAULTS = [(case, fault) for case, guarded in CASES.items() for fault in guarded.faults]


@dataclass(frozen=True)
class Cached:
    """Clips made with a step cache, and the steps that ran, by cache."""

    made: Made
    steps: list[list[int]]


Cache = Callable[[Guarded, Parts], Cached]


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """The clips with a step cache of these parts."""

    def clips(guarded: Guarded, parts: Parts) -> Cached:
        if parts.method is not None:
            monkeypatch.setitem(step_caching.METHODS, guarded.method, parts.method)
        with noted(parts.cache) as steps:
            made = make_with(tmp_path / "cached", guarded.setting, numbers=guarded.clips)
        return Cached(made, steps)

    return clips


@pytest.fixture(scope="module")
def fewer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Guarded], Made]:
    """The clips without a cache, in about as many steps as run with it."""
    made: dict[str, Made] = {}

    def clips(guarded: Guarded) -> Made:
        if guarded.method not in made:
            folder = tmp_path_factory.mktemp("fewer") / guarded.method
            made[guarded.method] = make(folder, guarded.setting.pocket, numbers=guarded.clips, steps=guarded.fewer)
        return made[guarded.method]

    return clips


def wrong(guarded: Guarded, found: Cached, base: Made, fewer: Made) -> dict[str, str]:
    """What is wrong, by measure."""
    distance = latents_apart(base, found.made) / latents_apart(base, fewer)
    told = {}
    if distance > guarded.farthest:
        told["distance"] = f"{distance:.3f} as far from the clips of all steps as clips of {guarded.fewer} steps"
    count = guarded.caches * len(guarded.clips)
    if isinstance(guarded.run[0], float):
        least, most = guarded.run
        right = len(found.steps) == count and least <= sum(map(len, found.steps)) / count <= most
    else:
        right = found.steps == [list(guarded.run)] * count
    if not right:
        told["steps"] = f"{found.steps} ran"
    return told


@pytest.mark.parametrize("case", CASES)
def test_the_right_one_is_as_near_as_it_was(case: str, base: Base, fewer, cached: Cache) -> None:
    guarded = CASES[case]
    found, all_steps = cached(guarded, RIGHT), base(guarded.setting.pocket, guarded.clips)
    assert wrong(guarded, found, all_steps, fewer(guarded)) == {}
    assert all_steps.wrong == [], "clips that show their prompts anyway are chosen, or there is nothing to lose"
    beside = Comparison(all_steps, found.made)
    assert beside.lost["score"] <= 0, str(beside)


@pytest.mark.parametrize(("case", "fault"), FAULTS)
def test_a_broken_one_is_found(case: str, fault: str, base: Base, fewer, cached: Cache) -> None:
    guarded = CASES[case]
    parts, measures = guarded.faults[fault]
    found = cached(guarded, parts)
    told = wrong(guarded, found, base(guarded.setting.pocket, guarded.clips), fewer(guarded))
    assert measures <= set(told), told
