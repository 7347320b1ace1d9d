"""Is what lies in site-packages whole? Judged from the files, by the lists that installers leave beside each package.

A killed installer leaves a package that pip takes for installed: its `*.dist-info` is there, its last files are not.
Two checks: a quick one by names (a millisecond), a full one by each file's existence and size (under a second).
Knows nothing of what should be installed.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

SUFFIX = ".dist-info"


def entries(site_packages: Path) -> list[str]:
    """The names in site-packages, without caches and an interrupted pip's leavings (`~name`)."""
    return sorted(name for name in os.listdir(site_packages) if not name.startswith("~") and name != "__pycache__")


def missing(site_packages: Path, expected: Iterable[str]) -> list[str]:
    """Names of `expected` that are gone; all of them when the folder is."""
    try:
        present = set(os.listdir(site_packages))
    except OSError:
        return list(expected)
    return [name for name in expected if name not in present]


def versions(site_packages: Path) -> dict[str, str]:
    """Package name → version, from the folder names."""
    stems = (name[: -len(SUFFIX)] for name in entries(site_packages) if name.endswith(SUFFIX))
    return {name.replace("_", "-").lower(): version for name, _, version in (stem.rpartition("-") for stem in stems)}


def _fault(package: Path, site_packages: Path) -> str:
    """What is wrong with one package; empty when nothing is."""
    if not (package / "INSTALLER").exists() or not (package / "METADATA").exists():
        return "was only half installed"
    try:
        with open(package / "RECORD", newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except (OSError, ValueError, csv.Error):
        return "was only half installed"
    for row in rows:
        if not row or row[0].endswith(".pyc"):
            continue
        path = os.path.join(site_packages, row[0])
        try:
            size = os.stat(path).st_size
        except OSError:
            return f"lacks {row[0]}"
        if len(row) > 2 and row[2].isdecimal() and size != int(row[2]):
            return f"has a damaged {row[0]}"
    return ""


def damaged(site_packages: Path) -> dict[str, str]:
    """`name-version` → what is wrong, for each installed package that is not whole."""
    faults = {}
    for name in entries(site_packages):
        if name.endswith(SUFFIX):
            fault = _fault(site_packages / name, site_packages)
            if fault:
                faults[name[: -len(SUFFIX)]] = fault
    return faults


def forget(site_packages: Path, packages: Iterable[str]) -> None:
    """Make an installer see `packages` (`name-version`) as not installed, and clear what an interrupted pip left."""
    for name in packages:
        shutil.rmtree(site_packages / f"{name}{SUFFIX}", ignore_errors=True)
    for name in os.listdir(site_packages):
        if name.startswith("~"):
            path = site_packages / name
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
