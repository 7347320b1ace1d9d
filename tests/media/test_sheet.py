"""Contact sheets."""

from __future__ import annotations

import numpy as np
from PIL import Image

from engine.media.sheet import contact_sheet, draw_sheet, spread, strip
from tests.clips import picture


def test_a_sheet_shows_every_frame(tmp_path):
    red = np.full((90, 160, 3), (255, 0, 0), np.uint8)
    rows = [(f"clip {n}\nwith a caption that is much too long for its panel " * 3, [red] * 3) for n in range(5)]
    path = contact_sheet(rows, tmp_path / "new" / "sheet.png", title="five clips")
    image = np.asarray(Image.open(path))
    assert (image == (255, 0, 0)).all(axis=2).sum() == 15 * 90 * 160
    assert list(path.parent.iterdir()) == [path]


def test_thumbnails_are_shrunk_never_enlarged():
    small, large = np.zeros((20, 30, 3), np.uint8), picture(1, (640, 360))
    assert draw_sheet([("a", [small])]).width == draw_sheet([("a", [large])]).width
    assert draw_sheet([("a", [large] * 4)], columns=1).width < 4 * 160 + 100


def test_a_strip_is_frames_side_by_side():
    frames = [np.full((48, 64, 3), colour, np.uint8) for colour in (0, 100, 200)]
    image = np.asarray(strip(frames, thumbnail=32))
    assert image.shape == (24, 96, 3) and list(image[12, 16::32, 0]) == [0, 100, 200]


def test_columns_and_empty_sheets():
    rows = [(str(n), [picture(n)]) for n in range(6)]
    assert draw_sheet(rows, columns=3).width > draw_sheet(rows, columns=1).width
    assert draw_sheet([]).width > 0
    assert draw_sheet([("字幕 label", [])]).height > 0


def test_spread_holds_both_ends():
    assert spread(10, 4) == [0, 3, 6, 9] and spread(3, 5) == [0, 1, 2] and spread(9, 1) == [0] and spread(0, 4) == []
