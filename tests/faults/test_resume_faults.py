"""Trainings that are killed again and again, at any moment: in the end the LoRA is that of one left alone.

MUSUBI_TEST_KILLS=25 python -m pytest tests/faults/test_resume_faults.py kills more often than the few times of a
quick run.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.training.states import complaint
from tests.faults.kit import HOLD_S, LEFTOVERS, forked, needs_kill
from tests.faults.training_child import train_flagged

pytestmark = [pytest.mark.slow, needs_kill]
KILLS = int(os.environ.get("MUSUBI_TEST_KILLS", "3"))
STEPS = 4 + 2 * KILLS
LIMIT_S = HOLD_S + 4 * STEPS  # of a whole training


def start(flag: Path, step: int, words: list[str]):
    return forked(train_flagged, str(flag), step, words)


def finish(flag: Path, words: list[str]) -> None:
    child = start(flag, 0, words)
    child.join(LIMIT_S)
    child.kill()  # if it still runs
    assert child.exitcode == 0


def loss_curve_of(out: Path) -> dict[str, list]:
    return torch.load(out / "demo-lora-state" / "history.pt", weights_only=True)


@pytest.fixture(scope="module")
def words(cached):
    """The command line of a training whose every source of randomness is in use, but for where its results go."""
    (step,) = (step for step in cached.steps if step.verb == "train")
    more = (
        "--max_train_steps", STEPS, "--save_every_n_steps", 1, "--save_state", "--save_last_n_steps", 2,
        "--network_dropout", 0.1, "--lr_scheduler", "cosine", "--lr_warmup_steps", 3, "--num_timestep_buckets", 3,
        "--gradient_accumulation_steps", 2, "--validation_split", 0.2, "--validate_every_n_steps", 2, "--use_ema",
        "--save_best_validation",
    )  # fmt: skip
    return lambda out: [*step.command, *map(str, (*more, "--output_dir", out, "--logging_dir", out / "logs"))]


@pytest.fixture(scope="module")
def undisturbed(words, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(folder / "flag", words(folder / "out"))
    return folder / "out"


def test_killed_at_random_moments_it_ends_in_the_same_lora(words, undisturbed: Path, tmp_path: Path) -> None:
    out, flag, chance, killed = tmp_path / "out", tmp_path / "flag", random.Random(17), 0
    while killed < KILLS:
        child = start(flag, chance.randint(1, 4), words(out))
        deadline = time.monotonic() + HOLD_S
        while not flag.exists() and child.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.06))  # a step with its saving takes about so long
        child.kill()
        child.join()
        if child.exitcode == 0:
            break  # it was faster
        flag.unlink(missing_ok=True)
        killed += 1
        assert all(complaint(state) == "" for state in out.glob("*-state"))
        assert all(load_file(lora) for lora in out.glob("*.safetensors"))
    assert killed >= min(KILLS, 3)
    finish(flag, words(out))
    assert (undisturbed / "demo-lora-best.safetensors").exists()
    names = {file.name for file in undisturbed.glob("*.safetensors")}
    assert {file.name for file in out.glob("*.safetensors")} == names
    for file in names:
        ours, theirs = load_file(out / file), load_file(undisturbed / file)
        assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert loss_curve_of(out) == loss_curve_of(undisturbed)
    assert not list(out.glob(LEFTOVERS))
