"""Where things live, on every platform."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from env_bootstrap import home


def test_musubi_home_wins(tmp_path: Path) -> None:
    assert home.find_home({"MUSUBI_HOME": str(tmp_path / "x"), "XDG_DATA_HOME": "/data"}).path == tmp_path / "x"


def test_a_relative_home_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert home.find_home({"MUSUBI_HOME": "here"}).path == tmp_path / "here"


def test_a_tilde_is_the_users_folder() -> None:
    assert home.find_home({"MUSUBI_HOME": "~/m"}).path == Path("~/m").expanduser()


@pytest.mark.parametrize(
    ("platform", "windows", "environment", "expected"),
    [
        ("linux", False, {"XDG_DATA_HOME": "/data"}, "/data/musubi"),
        ("linux", False, {"XDG_DATA_HOME": "relative"}, "~/.local/share/musubi"),
        ("linux", False, {"MUSUBI_HOME": " "}, "~/.local/share/musubi"),
        ("darwin", False, {"XDG_DATA_HOME": "/data"}, "~/Library/Application Support/musubi"),
        ("win32", True, {"LOCALAPPDATA": "/local"}, "/local/musubi"),
        ("win32", True, {}, "~/AppData/Local/musubi"),
    ],
)
def test_the_platforms_data_folder(
    platform: str, windows: bool, environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(home, "WINDOWS", windows)
    assert home.find_home(environment).path == Path(expected).expanduser()


def test_windows_keeps_its_python_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(home, "WINDOWS", True)
    assert home.Home(tmp_path).python == tmp_path / "env" / "Scripts" / "python.exe"


def test_everything_lies_under_the_home_and_nothing_in_the_pack(tmp_path: Path) -> None:
    place = home.Home(tmp_path)
    for path in (place.env, place.stamp, place.lock, place.logs, place.cache, place.temporary, place.tools):
        assert tmp_path in path.parents
