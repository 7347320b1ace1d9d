"""What an interrupted or meddled-with installation looks like from its files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from env_bootstrap import integrity


def install(site_packages: Path, name: str = "thing", version: str = "1.0") -> Path:
    about = site_packages / f"{name}-{version}.dist-info"
    (site_packages / name).mkdir(parents=True)
    (site_packages / name / "__init__.py").write_text("x = 1\n")
    about.mkdir()
    (about / "METADATA").write_text("Name: thing\n")
    (about / "INSTALLER").write_text("pip\n")
    record = f"{name}/__init__.py,sha256=abc,6\n{name}/__pycache__/__init__.cpython-311.pyc,,\n../bin/run,sha256=a,4\n"
    (about / "RECORD").write_text(record + f"{name}-{version}.dist-info/RECORD,,\n")
    (site_packages.parent / "bin").mkdir(exist_ok=True)
    (site_packages.parent / "bin" / "run").write_text("run\n")
    return about


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    install(tmp_path / "packages")
    return tmp_path / "packages"


def test_a_whole_package_has_no_fault(packages: Path) -> None:
    assert integrity.damaged(packages) == {}
    assert integrity.versions(packages) == {"thing": "1.0"}


@pytest.mark.parametrize("name", ["RECORD", "INSTALLER", "METADATA"])
def test_a_package_killed_while_it_was_installed(packages: Path, name: str) -> None:
    """pip takes a folder with METADATA for an installed package; the lists it writes last tell the truth."""
    (packages / "thing-1.0.dist-info" / name).unlink()
    assert "half installed" in integrity.damaged(packages)["thing-1.0"]


def test_a_deleted_folder(packages: Path) -> None:
    before = integrity.entries(packages)
    shutil.rmtree(packages / "thing")
    assert integrity.missing(packages, before) == ["thing"]
    assert integrity.damaged(packages) == {"thing-1.0": "lacks thing/__init__.py"}


def test_a_cut_file(packages: Path) -> None:
    (packages / "thing" / "__init__.py").write_text("x")
    assert integrity.damaged(packages) == {"thing-1.0": "has a damaged thing/__init__.py"}


def test_a_missing_script(packages: Path) -> None:
    (packages.parent / "bin" / "run").unlink()
    assert "bin/run" in integrity.damaged(packages)["thing-1.0"]


def test_a_binary_mess_for_a_list(packages: Path) -> None:
    (packages / "thing-1.0.dist-info" / "RECORD").write_bytes(b"\xff\xfe\x00" * 100)
    assert "thing-1.0" in integrity.damaged(packages)


def test_forgotten_packages_are_no_longer_taken_for_installed(packages: Path) -> None:
    (packages / "~hing").mkdir()
    (packages / "~file").write_text("")
    integrity.forget(packages, ["thing-1.0"])
    assert integrity.versions(packages) == {}
    assert sorted(path.name for path in packages.iterdir()) == ["thing"]


def test_a_folder_that_is_gone_lacks_everything(tmp_path: Path) -> None:
    assert integrity.missing(tmp_path / "none", ["a", "b"]) == ["a", "b"]
