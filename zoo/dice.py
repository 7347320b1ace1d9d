"""Chance that is the same on every machine and with every numpy: Philox's raw words, and our own arithmetic on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
_WORDS = 64  # fetched at a time


class Dice:
    """An endless row of chances that follows from a seed; `stream` gives independent rows of one seed."""

    def __init__(self, seed: int, *, stream: int = 0) -> None:
        self._source = np.random.Philox(key=(stream << 64) + seed % (1 << 64))
        self._words: list[int] = []

    def share(self) -> float:
        """A number from 0 to below 1."""
        if not self._words:
            self._words = self._source.random_raw(_WORDS).tolist()
        return (self._words.pop() >> 11) * 2.0**-53

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.share()

    def chance(self, probability: float) -> bool:
        return self.share() < probability

    def choose(self, options: Sequence[T]) -> T:
        return options[int(self.share() * len(options))]

    def weighted(self, options: dict[T, float]) -> T:
        """One of the keys, each as often as its weight says."""
        left = self.share() * sum(options.values())
        for option, weight in options.items():
            left -= weight
            if left < 0:
                return option
        return option
