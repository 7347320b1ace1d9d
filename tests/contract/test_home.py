"""Where the engine keeps what it may lose, told or not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from engine.contract.home import engine_home, results_folder
from engine.parts.mapped_files import scratch_folder
from engine.tasks import attention_kernels


@pytest.fixture
def around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose environment this Python is said to be of; nothing is told."""
    monkeypatch.delenv("MUSUBI_HOME", raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "env"))
    return tmp_path


def test_without_a_word_it_is_around_the_environment(around: Path) -> None:
    assert engine_home() is None  # any Python
    (around / "env.json").write_text("{}")
    assert engine_home() == around


@pytest.mark.parametrize("told", ["/somewhere else", " /somewhere else "])
def test_what_is_told_counts_first(around: Path, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (around / "env.json").write_text("{}")
    monkeypatch.setenv("MUSUBI_HOME", told)
    assert engine_home() == Path("/somewhere else")
    monkeypatch.setenv("MUSUBI_HOME", " ")
    assert engine_home() == around


def test_its_names_are_those_of_the_environments_maker(around: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from env_bootstrap.home import Home

    made = Home(around)
    assert made.stamp == around / "env.json" and made.env == Path(sys.prefix)
    monkeypatch.delenv("MUSUBI_SCRATCH", raising=False)
    made.stamp.write_text("{}")
    assert made.scratch == scratch_folder() and made.attention == around / attention_kernels.REMEMBERED


def test_results_go_there_too_or_into_the_current_folder(around: Path) -> None:
    assert results_folder("demo") == Path("musubi-demo")
    (around / "env.json").write_text("{}")
    assert results_folder("demo") == around / "demo"
