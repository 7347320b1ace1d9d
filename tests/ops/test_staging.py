"""Moving where there is no GPU; with one: tests/gpu/test_staging.py."""

from __future__ import annotations

import torch

from engine.ops.staging import moved


def test_what_is_there_already_stays_and_the_order_is_kept() -> None:
    given = [torch.full((size,), float(size)) for size in (3, 1, 2)]
    there = list(moved((tensor, torch.device("cpu")) for tensor in given))
    assert all(one is other for one, other in zip(given, there, strict=True))
