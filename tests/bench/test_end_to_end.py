"""tests/gpu/end_to_end.py, as far as it goes without a GPU: its commands are commands."""

from __future__ import annotations

import pytest

from engine.bench.cases import Case
from engine.bench.files import Input, Models
from engine.contract.cli import parse
from tests.gpu.end_to_end import commands, runs

RUNS = {run.name: run for run in runs()}


def test_every_size_of_every_family_and_two_experts():
    assert {"wan-1.3b", "wan-14b", "wan-t2v-a14b", "hunyuan-13b", "framepack"} <= set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_its_commands_parse(name, tmp_path):
    run = RUNS[name]
    case = Case(name=name, group="train", kind="train", family=run.family, size=run.model.train[-1], modes={},
                model=run.model)  # fmt: skip
    files = Models(tmp_path / "models", tiny=True, say=lambda event: None).of(case)
    jobs = {verb: parse(words) for verb, words in commands(run, files, tmp_path, Input.of(case, tiny=True))}
    assert list(jobs) == ["cache-latents", "cache-text", "train", "generate"]
    told = [jobs[verb].to_toml() for verb in ("train", "generate")]
    assert all(("dit_high_noise" in text) == bool(run.changed) for text in told)
