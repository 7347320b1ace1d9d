"""Randomness that leaves no trace: sampling must not change what a training draws next."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from engine.ops.randomness import undisturbed_randomness


def draw() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(1).item()


@pytest.mark.parametrize("fails", [False, True])
def test_every_source_goes_on_as_if_nothing_had_been_drawn(fails: bool) -> None:
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    draw()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = draw()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    try:
        with undisturbed_randomness(torch.device("cpu")):
            torch.manual_seed(8)
            assert draw() != expected
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert draw() == expected
