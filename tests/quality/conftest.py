"""The clips as they are without any setting, made once for the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import pytest

from .making import Made, Pocket, make, one_thread
from .settings import STEPS


class Base(Protocol):
    def __call__(self, pocket: Pocket, numbers: tuple[int, ...], *, steps: int = STEPS) -> Made: ...


@pytest.fixture(scope="module", autouse=True)
def single() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """These clips of a pocket model as it is."""
    made: dict[tuple[str, tuple[int, ...], int], Made] = {}

    def clips(pocket: Pocket, numbers: tuple[int, ...], *, steps: int = STEPS) -> Made:
        key = (pocket.family, numbers, steps)
        if key not in made:
            made[key] = make(tmp_path_factory.mktemp("base") / pocket.family, pocket, numbers=numbers, steps=steps)
        return made[key]

    return clips
