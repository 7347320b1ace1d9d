"""Averages of checkpoints: order, guards. The numbers are checked against musubi-tuner's in tests/golden."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from engine.contract.errors import OptionError, WeightsError
from engine.contract.options.tools import SIGMA_REL_HIGH
from engine.lora.ema import average, betas, in_order, power_gamma


def test_every_allowed_width_has_an_exponent() -> None:
    """Near the limit the reference finds no root and crashes in numpy."""
    assert power_gamma(SIGMA_REL_HIGH) == pytest.approx(0.0, abs=1e-4)
    assert power_gamma(0.2886) == pytest.approx(0.0, abs=0.01)
    assert power_gamma(0.0001) > 5000
    exponents = [power_gamma(width / 1000) for width in range(1, 289)]
    assert exponents == sorted(exponents, reverse=True)
    with pytest.raises(OptionError, match="too wide"):
        power_gamma(0.29)


def test_two_files_need_no_line() -> None:
    assert betas(2, beta=0.9, beta2=0.5) == [0.9] and betas(3, beta=0.9, beta2=0.5) == [0.9, 0.5]
    assert betas(4, beta=0.9) == [0.9] * 3


def test_different_files_are_refused() -> None:
    one = {"a.alpha": torch.tensor(1.0), "a.lora_up.weight": torch.ones(2, 2)}
    for other, told in (
        ({"a.alpha": torch.tensor(1.0)}, "different tensors"),
        ({**one, "b.alpha": torch.tensor(1.0)}, "different tensors"),
        ({**one, "a.alpha": torch.tensor(2.0)}, "a.alpha is 1 in x and 2 in y"),
        ({**one, "a.lora_up.weight": torch.ones(2, 3)}, r"\(2, 2\) in x, \(2, 3\) in y"),
    ):
        with pytest.raises(WeightsError, match=told):
            average([("x", one), ("y", other)], [0.5])


def files(folder: Path, *names: str) -> dict[Path, dict[str, str]]:
    found = {}
    for number, name in enumerate(names):
        (folder / name).write_text("")
        os.utime(folder / name, (1000 - number, 1000 - number))  # copied in the wrong order
        found[folder / name] = {}
    return found


def test_order_is_that_of_the_training(tmp_path: Path) -> None:
    """The reference goes by the time of the file, which copying and downloading change."""
    steps = files(tmp_path, "b.safetensors", "a.safetensors")
    by_metadata = {path: {"ss_steps": str(100 + number)} for number, path in enumerate(steps)}
    assert in_order(by_metadata) == (list(steps), "training step")
    named = files(tmp_path, "x-step00000100.safetensors", "x-step00000900.safetensors", "x.safetensors")
    assert in_order(named) == (list(named), "step in the name")
    epochs = files(tmp_path, "x-000001.safetensors", "x-000010.safetensors")
    assert in_order(dict(reversed(epochs.items()))) == (list(epochs), "epoch in the name")
    plain = files(tmp_path, "q.safetensors", "p.safetensors")
    assert in_order(plain) == (list(plain)[::-1], "time of writing")
