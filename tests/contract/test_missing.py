"""What is said of a file that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.contract.missing import looked_for, missing_file_hint


def test_the_nearest_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "3_train.toml").touch()
    (tmp_path / "clips").mkdir()
    assert missing_file_hint(tmp_path / "3_trian.toml") == "Did you mean 3_train.toml?"
    assert missing_file_hint(tmp_path / "other.json") == ""
    monkeypatch.chdir(tmp_path)
    assert missing_file_hint(Path("3_trian.toml")) == "Did you mean 3_train.toml?"


def test_a_folder_that_is_missing_is_told_by_the_last_one_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert missing_file_hint(tmp_path / "a" / "b" / "c.toml") == f"Its folder does not exist; {tmp_path} does."
    monkeypatch.chdir(tmp_path)
    assert missing_file_hint(Path("a/c.toml")) == f"Its folder does not exist; {tmp_path} does."  # not "."


def test_a_folder_that_may_not_be_read_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_folder: object) -> None:
        raise PermissionError

    monkeypatch.setattr("os.listdir", denied)
    assert missing_file_hint(tmp_path / "a.toml") == ""


def test_only_of_a_relative_path_is_said_where_it_was_looked_for(tmp_path: Path) -> None:
    assert looked_for(tmp_path / "a.toml") == ""
    assert looked_for(Path("a.toml")) == f" It was looked for in {Path.cwd()}."
