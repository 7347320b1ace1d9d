"""`env.json`: read back as written, or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from env_bootstrap.problems import Problem
from env_bootstrap.stamp import Stamp, load, save


def test_read_back_as_written(tmp_path: Path) -> None:
    stamp = Stamp(build="cpu", chosen=True, steps={"venv": "1"}, entries=["a"], versions={"a": "1"}, seconds=2.0)
    save(stamp, tmp_path / "env.json")
    assert load(tmp_path / "env.json") == stamp
    assert os.listdir(tmp_path) == ["env.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        '{"format": 2}',
        '{"format": 1, "steps": []}',
        '{"format": 1, "ready": "yes"}',
        "\x00" * 50,
    ],
)
def test_what_cannot_be_understood_counts_as_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "env.json").write_text(text)
    assert load(tmp_path / "env.json") is None


def test_every_truncation_is_none_or_whole(tmp_path: Path) -> None:
    save(Stamp(build="cpu", steps={"venv": "1"}), tmp_path / "env.json")
    whole = (tmp_path / "env.json").read_text()
    for length in range(len(whole)):
        (tmp_path / "env.json").write_text(whole[:length])
        assert load(tmp_path / "env.json") is None


def test_unknown_fields_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "env.json").write_text(json.dumps({"format": 1, "build": "cpu", "colour": "red", "seconds": 3}))
    stamp = load(tmp_path / "env.json")
    assert stamp is not None and stamp.build == "cpu"


def test_a_full_disk_leaves_the_old_stamp_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(Stamp(build="cpu"), tmp_path / "env.json")

    def full(descriptor: int) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Problem) as caught:
        save(Stamp(build="cu130"), tmp_path / "env.json")
    assert caught.value.exit_status == 4
    kept = load(tmp_path / "env.json")
    assert kept is not None and kept.build == "cpu"
