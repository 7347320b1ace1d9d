"""Every golden file in this folder passes, and the checker itself can fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.golden.__main__ import check_file, checks, main
from tests.golden.kit import row, same

FOLDER = Path(__file__).parent
FILES = sorted(FOLDER.glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_agrees_with_the_reference(path: Path) -> None:
    verdict, text = check_file(path, checks())
    assert verdict == "ok", text


def test_a_wrong_number_a_nan_and_a_wrong_shape_are_misses() -> None:
    ones = torch.ones(3)
    assert row("equal", ones, ones).good
    assert not row("off", ones, ones + 1e-4).good
    assert not row("nan", ones * float("nan"), ones).good
    assert not row("shape", ones, torch.ones(4)).good
    assert not same("list", [1], [2]).good


def test_an_empty_folder_and_an_unknown_file_are_not_success(tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 2
    (tmp_path / "nobody_knows_this.json").write_text("{}")
    assert main([str(tmp_path)]) == 1
