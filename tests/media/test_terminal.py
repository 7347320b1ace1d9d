"""Pictures as half blocks: every pixel has its place and colour."""

from __future__ import annotations

import re

import numpy as np
import pytest

from engine.contract.errors import OptionError
from engine.media.terminal import colour, half_blocks, side_by_side

_CODES = re.compile(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m")


def read_back(text: str) -> np.ndarray:
    """The picture that a terminal would show."""
    rows = []
    for line in text.splitlines():
        upper, lower, now = [], [], None
        for part in re.split(r"(\x1b\[[\d;]*m)", line):
            if codes := _CODES.fullmatch(part):
                now = [int(value) for value in codes.groups()]
            elif not part.startswith("\x1b"):
                upper += [now[:3] for _ in part]
                lower += [now[3:] for _ in part]
        rows += [upper, lower]
    return np.array(rows, dtype=np.uint8)


def test_every_pixel_is_shown() -> None:
    picture = np.random.default_rng(1).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    assert (read_back(half_blocks(picture)) == picture).all()


def test_equal_neighbours_share_a_code_and_each_line_ends_plain() -> None:
    text = half_blocks(np.full((4, 30, 3), 7, dtype=np.uint8))
    assert len(_CODES.findall(text)) == 2 and all(line.endswith("\x1b[0m") for line in text.splitlines())
    assert [line.count("▀") for line in text.splitlines()] == [30, 30]


def test_an_odd_height_ends_in_the_background() -> None:
    shown = read_back(half_blocks(np.zeros((3, 2, 3), dtype=np.uint8), background=(9, 8, 7)))
    assert shown.shape == (4, 2, 3) and (shown[3] == (9, 8, 7)).all()


def test_pictures_stand_side_by_side_in_the_width_that_is_asked_for() -> None:
    wide, high = np.full((10, 20, 3), 200, dtype=np.uint8), np.full((20, 10, 3), 100, dtype=np.uint8)
    row = side_by_side([wide, high], width=41, background=(1, 2, 3))
    assert row.shape == (40, 41, 3)
    assert (row[:, 20] == (1, 2, 3)).all() and (row[0, :20] == (1, 2, 3)).all()
    assert (row[20, :20] == 200).all() and (row[:, 21:] == 100).all()


def test_colours_have_names_or_numbers() -> None:
    assert colour("white", flag="--x") == (255, 255, 255) and colour("#102030", flag="--x") == (16, 32, 48)
    with pytest.raises(OptionError, match="--console_back greenish is not a colour"):
        colour("greenish", flag="--console_back")
