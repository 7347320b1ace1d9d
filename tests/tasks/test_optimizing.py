"""Optimizers, bf16 weights and the fused backward pass, through the command that a person types."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from engine.families import part

BF16 = ("--full_bf16", "--mixed_precision", "bf16")
FUSED = ("--fused_backward_pass", "--max_grad_norm", 0)


@pytest.fixture
def train(engine, cached, tmp_path):
    def run(name: str, *more: object):
        out = ("--output_dir", tmp_path / name, "--logging_dir", tmp_path / "logs")
        return engine(*cached.steps[2].command, *out, "--max_train_steps", 4, *more)

    return run


def metrics(out: Path) -> list[dict[str, float]]:
    (events,) = out.glob("jobs/*/events.jsonl")
    rows = [json.loads(line) for line in events.read_text().splitlines()]
    return [row["values"] for row in rows if row["event"] == "metric"]


def test_prodigy_by_the_name_that_guides_use_says_what_rate_it_found(train, tmp_path) -> None:
    result = train("out", "--optimizer_type", "prodigyopt.Prodigy", "--learning_rate", 1, "--optimizer_args", "d0=1e-4")
    assert result.status == 0, result.err
    found = [row["lr/d*lr/unet"] for row in metrics(tmp_path / "out")]
    assert found[0] == pytest.approx(1e-4) and found[-1] > found[0]
    refused = train("two", "--optimizer_type", "Prodigy", "--network_args", "loraplus_lr_ratio=4")
    assert refused.status == 2 and "one learning rate for all" in refused.err


def test_bf16_weights_train_make_samples_and_say_so(train, cached, tmp_path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle --w 64 --h 48 --f 5 --s 2 --d 7\n")
    models = part("wan", "tiny").tiny_model_options(cached.folder / "models")["generate"]
    words = [word for name, value in models.items() for word in (f"--{name}", *([] if value is True else [value]))]
    samples = ("--sample_prompts", prompts, "--sample_every_n_steps", 4, "--save_state")
    result = train("out", *BF16, "--learning_rate", 1e-3, *samples, *words)
    assert result.status == 0, result.err
    assert list((tmp_path / "out" / "sample").iterdir())
    file = tmp_path / "out" / "demo-lora.safetensors"
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["ss_full_bf16"] == "True" and opened.metadata()["ss_fp8_base"] == "False"
    stored = load_file(tmp_path / "out" / "demo-lora-state" / "lora.safetensors")
    weights = {name: value for name, value in stored.items() if not name.endswith("alpha")}
    assert all(value.dtype == torch.bfloat16 for value in weights.values())
    written = load_file(file)
    assert all(written[name].float().equal(value.float()) for name, value in weights.items())
    assert any(value.any() for name, value in weights.items() if "lora_up" in name)


def test_the_fused_backward_pass_makes_the_same_lora(train, tmp_path) -> None:
    assert train("plain", "--max_grad_norm", 0, "--seed", 3).status == 0
    result = train("fused", *FUSED, "--seed", 3)
    assert result.status == 0, result.err
    plain, fused = (load_file(tmp_path / name / "demo-lora.safetensors") for name in ("plain", "fused"))
    assert all(plain[name].equal(value) for name, value in fused.items())
    refused = train("prodigy", *FUSED, "--optimizer_type", "Prodigy")
    assert refused.status == 2 and "one parameter at a time" in refused.err


def test_an_optimizer_in_main_memory_makes_the_same_lora_and_goes_on_from_any_state(train, tmp_path) -> None:
    assert train("plain", "--seed", 3).status == 0
    half = ("--max_train_steps", 2, "--save_state", "--seed", 3, "--lr_scheduler", "constant")
    assert train("away", "--optimizer_cpu_offload", *half).status == 0
    state = tmp_path / "away" / "demo-lora-state"
    result = train("rest", "--optimizer_cpu_offload", "--resume", state, "--seed", 3, "--lr_scheduler", "constant")
    assert result.status == 0, result.err
    plain, rest = (load_file(tmp_path / name / "demo-lora.safetensors") for name in ("plain", "rest"))
    assert all(plain[name].equal(value) for name, value in rest.items())
