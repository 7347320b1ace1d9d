"""The pinned lists: exact, for every Python that is supported, and free of places."""

from __future__ import annotations

import re

import pytest

from env_bootstrap.checking import IMPORTS
from env_bootstrap.home import REQUIREMENTS

FILES = sorted(REQUIREMENTS.glob("*.txt"))
LINE = re.compile(
    r"([a-z0-9-]+)(==[\w.]+|>=[\d.]+,<[\d.]+)(?: ; (python_version|sys_platform) (>=|<|==) \"([\w.]+)\")?"
)


def lines(name: str) -> list[str]:
    text = (REQUIREMENTS / f"{name}.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_line_is_pinned_and_nothing_else(path: object) -> None:
    for line in lines(path.stem):  # type: ignore[attr-defined]
        assert LINE.fullmatch(line), line


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_place_to_download_from_is_named(path: object) -> None:
    """Where packages come from is the machine's affair."""
    assert not re.search(r"://|--|file:", path.read_text(encoding="utf-8"))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["base", "test"])
def test_a_package_with_a_newer_pin_has_one_for_python_310(name: str) -> None:
    markers: dict[str, set[str]] = {}
    for line in lines(name):
        found = LINE.fullmatch(line)
        assert found
        markers.setdefault(found[1], set()).add(found[4] or "all")
    for package, kinds in markers.items():
        assert kinds in ({"all"}, {">=", "<"}) or (package == "tomli" and kinds == {"<"}), package


def test_torch_is_alone() -> None:
    assert lines("torch") == ["torch==2.13.0"]
    assert not any(line.startswith("torch=") for name in ("base", "extras", "test") for line in lines(name))


def test_what_is_imported_is_required() -> None:
    names = {"PIL": "pillow", "cv2": "opencv-python-headless", "pynvml": "nvidia-ml-py", "lycoris": "lycoris-lora"}
    required = {line.split("=")[0] for line in [*lines("base"), *lines("torch")]}
    for module in IMPORTS:
        assert names.get(module, module.replace("_", "-")) in required, module
