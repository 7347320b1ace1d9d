"""Every optimizer that can be had here goes on bit for bit from a state, through the loop and a state folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from engine.training.checkpoints import Keep
from tests.training.test_loop import Stopping
from tests.training.toy_job import Job, job

TORCH = ("Adadelta", "Adagrad", "Adam", "Adamax", "AdamW", "ASGD", "Muon", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
OURS = ("Adafactor", "Prodigy", "CAME", "Lion", "AdamWScheduleFree")
THEIRS = (
    "AdamW8bit", "Lion8bit", "PagedAdamW8bit", "prodigyopt.Prodigy", "came_pytorch.CAME", "lion_pytorch.Lion",
    "dadaptation.DAdaptAdam", "schedulefree.RAdamScheduleFree",
)  # fmt: skip
FAST = {"Prodigy": 1.0, "prodigyopt.Prodigy": 1.0, "dadaptation.DAdaptAdam": 1.0, "Muon": 1e-3}


def is_here(name: str) -> bool:
    package = name.partition(".")[0] if "." in name else "bitsandbytes"
    return importlib.util.find_spec(package) is not None


def same_weights(one: Job, other: Job) -> bool:
    return all(torch.equal(value, other.network.state()[key]) for key, value in one.network.state().items())


def interrupted(folder: Path, **values) -> Job:
    """Stopped after four steps, and gone on with from the state by a job made anew."""
    first = job(folder, keep=Keep(save_every_n_steps=4, save_state=True), **values)
    assert Stopping(first, 4).run().stopped
    torch.manual_seed(999)
    second = job(folder, keep=Keep(save_every_n_steps=4, save_state=True), **values)
    second.resume(folder / "toy-step00000004-state")
    return second


@pytest.mark.parametrize("name", [*TORCH, *OURS])
@pytest.mark.parametrize("full_bf16", [False, True], ids=["fp32", "bf16"])
def test_a_resumed_training_equals_one_that_never_saved(tmp_path: Path, name: str, full_bf16: bool) -> None:
    values = {"optimizer": name, "lr": FAST.get(name, 1e-2), "full_bf16": full_bf16}
    if full_bf16:
        values["mixed_precision"] = "bf16"
    whole = job(tmp_path / "whole", **values)
    begin = {key: value.clone() for key, value in whole.network.state().items()}
    whole.run()
    assert same_weights(interrupted(tmp_path / "parts", **values), whole)
    assert any(not torch.equal(value, begin[key]) for key, value in whole.network.state().items())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.skipif(not is_here(name), reason="not installed")) for name in THEIRS]
)
def test_those_of_packages_equal_a_training_that_saved_at_the_same_steps(tmp_path: Path, name: str) -> None:
    """Schedule-free ones of the package are disturbed by saving, so both must do it."""
    values = {"optimizer": name, "lr": FAST.get(name, 1e-2)}
    whole = job(tmp_path / "whole", keep=Keep(save_every_n_steps=4, save_state=True), **values)
    whole.run()
    assert same_weights(interrupted(tmp_path / "parts", **values), whole)
