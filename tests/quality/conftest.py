"""The clips as they are without any setting, made once for all tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from .making import Made, Pocket, make, one_thread
from .settings import STEPS

Base = Callable[[Pocket, tuple[int, ...]], Made]


@pytest.fixture(scope="module", autouse=True)
def single() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """These clips of a pocket model as it is."""
    made: dict[tuple[str, tuple[int, ...]], Made] = {}

    def clips(pocket: Pocket, numbers: tuple[int, ...]) -> Made:
        key = (pocket.family, numbers)
        if key not in made:
            made[key] = make(tmp_path_factory.mktemp("base") / pocket.family, pocket, numbers=numbers, steps=STEPS)
        return made[key]

    return clips
