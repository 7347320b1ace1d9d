"""What is held out: by source, by name, the same in every run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engine.contract.errors import DataError
from engine.data.batches import TrainItem
from engine.data.holdout import choose, hold_out


def items(sources: int, *, windows: int = 1, folder: str = "cache") -> list[TrainItem]:
    return [
        TrainItem(
            latent_path=Path(folder, f"clip{source}_{window:05d}-017_0064x0064_toy.safetensors"),
            text_path=Path(folder, f"clip{source}_toy_te.safetensors"),
            dataset=0,
            key=(),
        )
        for source in range(sources)
        for window in range(windows)
    ]


def held(found: list[TrainItem]) -> set[str]:
    return {item.text_path.name for item in found}


def test_all_windows_of_a_source_go_together() -> None:
    trained, kept = hold_out(items(20, windows=3), 0.2, seed=42)
    assert len(kept) == 12 and len(trained) == 48 and not held(trained) & held(kept)


def test_the_same_clips_are_held_out_wherever_and_in_whatever_order_they_are() -> None:
    _, kept = hold_out(items(20), 0.2, seed=42)
    _, again = hold_out(items(20, folder="moved")[::-1], 0.2, seed=42)
    _, other = hold_out(items(20), 0.2, seed=43)
    assert held(kept) == held(again) != held(other)
    _, more = hold_out(items(25), 0.2, seed=42)
    assert len(held(kept) & held(more)) >= 3  # new clips push out few


def test_one_at_least_is_held_out_and_one_left() -> None:
    trained, kept = hold_out(items(2), 0.01, seed=1)
    assert len(trained) == len(kept) == 1
    with pytest.raises(DataError, match="leaves nothing to train on"):
        hold_out(items(1, windows=4), 0.1, seed=1)


def test_what_the_lora_should_leave_alone_is_not_held_out() -> None:
    ordinary = [replace(item, preserves_prior=True) for item in items(10, folder="ordinary")]
    own = items(10)  # of the same names
    trained, kept = hold_out([*ordinary, *own], 0.3, seed=1)
    assert len(kept) == 3 and not any(item.preserves_prior for item in kept)
    assert len(trained) == 17 and all(item in trained for item in ordinary)
    with pytest.raises(DataError, match="leaves nothing to train on"):
        hold_out(ordinary, 0.3, seed=1)


def test_a_choice_is_stable() -> None:
    some = items(10)
    assert choose(some, 3, seed=1) == choose(some[::-1], 3, seed=1) and len(choose(some, None, seed=1)) == 10
