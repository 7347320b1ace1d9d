"""A training that explodes, through the command that a person types: it ends with advice, and what is good stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.__main__ import main
from engine.demo.prepare import prepare

SAVING = ("--save_every_n_steps", 4, "--save_last_n_steps", 4, "--save_state")


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """A demo of its own with both caches made."""
    made = prepare(tmp_path_factory.mktemp("demo"), trained=False)
    for step in made.steps[:2]:
        assert main([*step.command, "--job_dir", str(tmp_path_factory.mktemp("job"))]) == 0
    return made


@pytest.fixture
def train(engine, cached, tmp_path):
    out = ("--output_dir", tmp_path / "out", "--logging_dir", tmp_path / "logs")
    return lambda *more: engine(*cached.steps[2].command, *out, "--max_train_steps", 40, *more)


def damage(cached, times: float, *, count: int | None = None) -> dict[Path, bytes]:
    """Make the latents of some clips so many times as large, as a faulty VAE would; what the files were before."""
    files = sorted(path for path in cached.folder.rglob("*_wan.safetensors"))[:count]
    before = {file: file.read_bytes() for file in files}
    for file in files:
        tensors = load_file(file)
        save_file(
            {name: times * value if name.startswith("latents") else value for name, value in tensors.items()}, file
        )
    return before


def restore(before: dict[Path, bytes]) -> None:
    for file, content in before.items():
        file.write_bytes(content)


def skipped(text: str) -> list[int]:
    return [int(words.split(":")[0]) for words in text.split("warning: Step ")[1:] if "step was skipped" in words]


def test_it_ends_with_advice_and_goes_on_from_what_was_good(train, cached, tmp_path) -> None:
    assert train(*SAVING, "--max_train_steps", 14).status == 0
    before = damage(cached, 3e4)
    try:
        result = train(*SAVING)
    finally:
        restore(before)
    said, out = " ".join(result.err.split()), tmp_path / "out"
    assert result.status == 2 and "The loss exploded: 10 steps in a row were skipped, up to step 24." in said
    assert "Lower --learning_rate" in said and "Traceback" not in said
    assert len(skipped(said)) == 10 and "times what is normal here; the step was skipped. Items:" in said
    states = sorted(path.name for path in out.glob("*-state"))
    assert states == ["demo-lora-state", "demo-lora-step00000008-state", "demo-lora-step00000012-state"]
    assert all(torch.isfinite(value).all() for value in load_file(out / "demo-lora-step00000012.safetensors").values())
    again = train(*SAVING)
    assert again.status == 0 and "Resuming after step 14" in again.err and not skipped(" ".join(again.err.split()))


def test_a_damaged_clip_is_left_out_and_named(train, cached) -> None:
    before = damage(cached, 3e4, count=1)
    try:
        result = train()
        off = train("--fresh", "--exploding_loss_factor", 0)
    finally:
        restore(before)
    said = " ".join(result.err.split())
    assert result.status == 0 and len(skipped(said)) in range(4, 9)
    assert said.count(f"Items: {next(iter(before)).name.partition('_')[0]}") == len(skipped(said))
    assert off.status == 0 and not skipped(" ".join(off.err.split()))


@pytest.mark.parametrize("family", ["hunyuan_video", "framepack"])
def test_a_demo_of_the_other_families_loses_no_step(engine, tmp_path, family) -> None:
    made = prepare(tmp_path, family, trained=False)
    for step in made.steps[:2]:
        assert engine(*step.command).status == 0
    result = engine(*made.steps[2].command, "--max_train_steps", 40, "--learning_rate", 0.02)
    assert result.status == 0 and not skipped(" ".join(result.err.split()))
