"""`--save_best_validation` through the command that a person types: names, what files say, other trainings' LoRAs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.families.wan import tiny
from engine.training.states import read_position
from tests.tasks.test_ema import metadata_of
from tests.tasks.test_resuming import same_weights

BEST = ("--save_best_validation", "--validation_split", 0.3, "--validate_every_n_steps", 2, "--learning_rate", 0.002)
SIX_STEPS = ("--max_train_steps", 6, "--save_every_n_steps", 1, "--save_state")


@pytest.fixture
def train(engine, cached, tmp_path) -> Callable:
    return lambda *more: engine(*cached.steps[2].command, "--output_dir", tmp_path / "out", *SIX_STEPS, *more)


def test_each_expert_and_its_average_are_kept_together(train, tmp_path) -> None:
    tiny.write_tiny_models(tmp_path / "models", variant="t2v-A14B")
    options = tiny.tiny_model_options(tmp_path / "models", variant="t2v-A14B")["train"]
    models = [word for name, value in options.items() for word in (f"--{name}", value)]
    result = train(*models, "--timestep_boundary", 0.5, *BEST, "--use_ema", "--ema_decay", 0.1, "--seed", 3)
    assert result.status == 0, result.err
    out = tmp_path / "out"
    best = read_position(out / "demo-lora-state").best
    assert best["step"] in (2, 4, 6) and f"after step {best['step']}: that LoRA is demo-lora-best." in result.err
    for ending in ("", "_high_noise", "_ema", "_high_noise_ema"):
        kept, numbered = (out / f"demo-lora{ending}{end}.safetensors" for end in ("-best", f"-step{best['step']:08d}"))
        assert same_weights(kept, numbered)
        assert metadata_of(kept)["ss_steps"] == str(best["step"])


def test_it_needs_something_to_validate_on(train) -> None:
    result = train("--save_best_validation")
    assert result.status == 2 and "--save_best_validation concerns validation" in " ".join(result.err.split())


def test_other_clips_or_levels_do_not_compare(train, tmp_path) -> None:
    assert train(*BEST, "--max_train_steps", 2).status == 0
    result = train(*BEST, "--validation_timesteps", 500)
    assert result.status == 0 and "chosen anew from step 4 on" in " ".join(result.err.split()), result.err


@pytest.mark.parametrize("option", ["--use_ema", "--save_best_validation"])
def test_a_training_that_goes_on_does_not_write_over_another_training_either(train, tmp_path, option) -> None:
    """The option is new to it: it may be started again with its own files there, but not with another's."""
    ending = {"--use_ema": "_ema", "--save_best_validation": "-best"}[option]
    split = ("--validation_split", 0.3)
    for name in (f"demo-lora{ending}", "demo-lora"):
        assert train(*split, "--output_name", name, "--max_train_steps", 1).status == 0
    other = tmp_path / "out" / f"demo-lora{ending}.safetensors"
    before = other.read_bytes()
    for more in ((), ("--fresh",)):
        refused = train(*split, option, *more)
        assert refused.status == 2 and "belongs to another training" in " ".join(refused.err.split())
    assert other.read_bytes() == before
    assert train(*split).status == 0


def test_a_lora_of_unknown_origin_is_not_written_over(train, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    other = tmp_path / "out" / "demo-lora-best.safetensors"
    other.write_bytes(b"of another training")
    refused = train(*BEST)
    assert refused.status == 2 and "there is no record of how they were made" in " ".join(refused.err.split())
    assert train("--max_train_steps", 1).status == 0 and other.read_bytes() == b"of another training"
