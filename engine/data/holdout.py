"""Which items are kept out of training to validate on. Decided by names, so that it stays the same in every run.

What is cut from one source goes together, as does what several datasets cut from sources of one name: a window of a
clip that is trained on would prove nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from ..contract.errors import DataError
from .batches import Batch, TrainItem
from .collate import collate


def hold_out(items: Sequence[TrainItem], share: float, *, seed: int) -> tuple[list[TrainItem], list[TrainItem]]:
    """(items to train on, items held out), with `share` (0..1) of the learned sources held out, one at least.

    DataError when nothing is left to learn.
    """
    sources = sorted({_source(item) for item in learned(items)}, key=lambda source: _place(seed, source))
    count = max(1, round(share * len(sources)))
    if count >= len(sources):
        clips = "1 clip" if len(sources) == 1 else f"{len(sources)} clips"
        raise DataError(
            f"--validation_split {share:g} of {clips} leaves nothing to train on.",
            "Add clips to the dataset (those with preserve_prior do not count), or name others with "
            "--validation_dataset_config.",
        )
    held = set(sources[:count])
    rest = [item for item in items if item.preserves_prior or _source(item) not in held]
    return rest, [item for item in learned(items) if _source(item) in held]


def learned(items: Sequence[TrainItem]) -> list[TrainItem]:
    """Without those on which the LoRA should change nothing: what these lose says nothing about learning."""
    return [item for item in items if not item.preserves_prior]


def choose(items: Sequence[TrainItem], most: int | None, *, seed: int) -> list[TrainItem]:
    """At most so many items, always the same ones of the same items."""
    return sorted(items, key=lambda item: _place(seed, item.latent_path.name))[:most]


def one_by_one(items: Sequence[TrainItem]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name of each item, and the batch of it alone."""
    for item in items:
        yield item.latent_path.name, collate(Batch((item,)))


def _source(item: TrainItem) -> str:
    return item.text_path.name  # one a source, whatever is cut from it


def _place(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()
