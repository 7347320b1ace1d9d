"""Pictures in a terminal: each character is two pixels, a half block in two colours. Knows no terminal's size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor

from ..contract.errors import OptionError

_UPPER_HALF = "▀"
_GAP = 1  # columns between pictures
_PLAIN = "\x1b[0m"


def colour(name: str, *, flag: str) -> tuple[int, int, int]:
    """Red, green and blue, 0..255, of a colour's name (`white`) or number (`#203040`). OptionError names `flag`."""
    try:
        red, green, blue, *_ = ImageColor.getrgb(name)
    except ValueError:
        raise OptionError(
            f"{flag} {name} is not a colour.", "Use a name such as white, or a number such as #203040."
        ) from None
    return red, green, blue


def side_by_side(
    pictures_HWC: Sequence[np.ndarray], *, width: int, background: tuple[int, int, int] = (0, 0, 0)
) -> np.ndarray:
    """Pictures (uint8 RGB 0..255) in one row of `width` pixels, each as wide as the others, shrunk or enlarged."""
    count = len(pictures_HWC)
    each = max((width - _GAP * (count - 1)) // count, 1)
    scaled = [
        Image.fromarray(picture).resize((each, max(round(picture.shape[0] * each / picture.shape[1]), 1)))
        for picture in pictures_HWC
    ]
    row = Image.new("RGB", (each * count + _GAP * (count - 1), max(picture.height for picture in scaled)), background)
    for number, picture in enumerate(scaled):
        row.paste(picture, (number * (each + _GAP), (row.height - picture.height) // 2))
    return np.array(row)


def half_blocks(picture_HWC: np.ndarray, *, background: tuple[int, int, int] = (0, 0, 0)) -> str:
    """A picture (uint8 RGB 0..255) as text: a column for each pixel, a line for every two, colours as ANSI codes."""
    if len(picture_HWC) % 2:
        picture_HWC = np.concatenate([picture_HWC, np.full_like(picture_HWC[:1], background)])
    lines = []
    for upper_WC, lower_WC in zip(picture_HWC[::2].tolist(), picture_HWC[1::2].tolist(), strict=True):
        cells, before = [], None
        for upper, lower in zip(upper_WC, lower_WC, strict=True):
            codes = "\x1b[38;2;{};{};{};48;2;{};{};{}m".format(*upper, *lower)
            cells.append(_UPPER_HALF if codes == before else codes + _UPPER_HALF)
            before = codes
        lines.append("".join(cells) + _PLAIN)
    return "\n".join(lines)
