"""What a job says is kept: for programs in `events.jsonl`, in words and with the time in `log.txt`."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.contract.events import Artifact, Done, Event, Log, Metric, Stage, Warning_
from engine.talk import JobFolder

SAID: list[Event] = [
    Stage(name="Loading the VAE", message="vae.pth"),
    Log(message="6 clips"),
    Log(message="inner workings", level="debug"),
    Metric(step=1, values={"loss/current": 1.0}),
    Warning_(message="left out"),
    Artifact(kind="LoRA", path="a.safetensors"),
    Done(message="1 step"),
]


@pytest.fixture
def level() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    before = root.level
    yield root
    root.setLevel(before)


@pytest.mark.parametrize(
    ("kept", "lines"),
    [
        ("INFO", ["INFO Loading the VAE vae.pth", "INFO 6 clips", "WARNING left out", "INFO saved LoRA: a.safetensors",
                  "INFO done 1 step"]),
        ("WARNING", ["WARNING left out"]),
    ],
)  # fmt: skip
def test_the_log_tells_the_job_in_words(kept: str, lines: list[str], level: logging.Logger, tmp_path: Path) -> None:
    level.setLevel(kept)
    folder = JobFolder(tmp_path, "")
    assert [folder.record(event) for event in SAID] == [""] * len(SAID)
    folder.close()
    told = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in told)
    assert [line[20:] for line in told] == lines
