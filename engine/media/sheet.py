"""Contact sheets: rows of labelled thumbnails on a dark ground. Draws what it is given; reads no files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..contract.files import whole_file
from .images import encoded

_GROUND, _PANEL, _TEXT, _FAINT = (22, 24, 29), (32, 35, 42), (232, 234, 238), (150, 156, 168)
_MARGIN, _GAP, _LABEL_HEIGHT = 24, 8, 26  # pixels
_LABEL_SIZE, _TITLE_SIZE = 15, 22
_LAST_LATIN = 0x2E7F  # East Asian scripts begin after it
_WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "YuGothM.ttc", "msgothic.ttc", "msyh.ttc", "Hiragino Sans GB.ttc")

Rows = Sequence[tuple[str, Sequence[np.ndarray]]]


def spread(count: int, shown: int) -> list[int]:
    """`shown` indices at even distances out of `count`, first and last included; all of them when there are fewer."""
    if count <= shown:
        return list(range(count))
    if shown == 1:
        return [0]
    return [round(index * (count - 1) / (shown - 1)) for index in range(shown)]


def contact_sheet(
    rows: Rows, path: str | Path, *, title: str = "", thumbnail: int = 160, columns: int | None = None
) -> Path:
    """Draw one row for each (label, frames uint8 RGB (height, width, 3)) and write a PNG; returns its path.

    A frame is shrunk until neither side is above `thumbnail` pixels. A label is `name` or `name\\ndetail`: the detail
    is drawn fainter. Panels go into as many columns as give a page about as wide as high, or into `columns`. Raises
    DiskError when the file cannot be written.
    """
    path = Path(path)
    sheet = draw_sheet(rows, title=title, thumbnail=thumbnail, columns=columns)
    with whole_file(path) as temporary:
        temporary.write_bytes(encoded(sheet, "PNG"))
    return path


def strip(frames: Sequence[np.ndarray], *, thumbnail: int) -> Image.Image:
    """Frames (uint8 RGB, of one size) side by side, each shrunk until neither side is above `thumbnail` pixels."""
    pictures = [_shrunk(frame, thumbnail) for frame in frames]
    row = Image.new("RGB", (sum(picture.width for picture in pictures), pictures[0].height))
    for number, picture in enumerate(pictures):
        row.paste(picture, (number * picture.width, 0))
    return row


def draw_sheet(rows: Rows, *, title: str = "", thumbnail: int = 160, columns: int | None = None) -> Image.Image:
    """The sheet as an image; see contact_sheet."""
    strips = [(label, [_shrunk(frame, thumbnail) for frame in frames]) for label, frames in rows]
    strips = strips or [("nothing to show", [])]
    width = max(2 * thumbnail, *(_GAP + sum(picture.width + _GAP for picture in strip) for _, strip in strips))
    cells = [_cell(label, pictures, width) for label, pictures in strips]
    columns = min(columns or _columns(cells, width), len(cells))
    top = _MARGIN + (_TITLE_SIZE + 2 * _GAP if title else 0)
    bottoms = [top] * columns  # where the next panel of each column begins
    places = []
    for cell in cells:
        column = bottoms.index(min(bottoms))
        places.append((_MARGIN + column * (width + _MARGIN), bottoms[column]))
        bottoms[column] += cell.height + _MARGIN
    sheet = Image.new("RGB", (_MARGIN + columns * (width + _MARGIN), max(bottoms)), _GROUND)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((_MARGIN, _MARGIN), title, font=_font(title, _TITLE_SIZE), fill=_TEXT)
    for cell, (left, upper) in zip(cells, places, strict=True):
        draw.rounded_rectangle((left, upper, left + width - 1, upper + cell.height - 1), radius=8, fill=_PANEL)
        sheet.paste(cell, (left, upper), _rounded(cell.size))
    return sheet


def _columns(cells: Sequence[Image.Image], width: int) -> int:
    """The number of columns whose page comes nearest to a square."""
    height = sum(cell.height for cell in cells) / len(cells) + _MARGIN
    shapes = {
        count: (count * (width + _MARGIN)) / (-(-len(cells) // count) * height) for count in range(1, len(cells) + 1)
    }
    return min(shapes, key=lambda count: max(shapes[count], 1 / shapes[count]))


def _cell(label: str, pictures: Sequence[Image.Image], width: int) -> Image.Image:
    """A panel of this width with the label above the thumbnails."""
    name, _, detail = label.partition("\n")
    head = _LABEL_HEIGHT * (2 if detail else 1)
    cell = Image.new("RGB", (width, head + max((p.height for p in pictures), default=0) + 2 * _GAP), _PANEL)
    draw = ImageDraw.Draw(cell)
    for row, (text, colour) in enumerate(((name, _TEXT), (detail, _FAINT))):
        fitted = _fitted(text, width - 2 * _GAP)
        draw.text((_GAP + 2, _GAP + row * (_LABEL_HEIGHT - 4)), fitted, font=_font(fitted, _LABEL_SIZE), fill=colour)
    left = _GAP
    for picture in pictures:
        cell.paste(picture, (left, head + _GAP))
        left += picture.width + _GAP
    return cell


def _shrunk(frame: np.ndarray, thumbnail: int) -> Image.Image:
    picture = Image.fromarray(frame)
    scale = min(thumbnail / max(picture.size), 1.0)
    size = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
    return picture.resize(size, Image.Resampling.LANCZOS)


def _fitted(text: str, width: int) -> str:
    """The text, cut with an ellipsis where it would run out of the panel."""
    font = _font(text, _LABEL_SIZE)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _rounded(size: tuple[int, int]) -> Image.Image:
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), radius=8, fill=255)
    return mask


@lru_cache(maxsize=16)
def _wide_font(size: int) -> ImageFont.FreeTypeFont | None:
    """A font of the system's with East Asian characters, where there is one."""
    for name in _WIDE_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return None


@lru_cache(maxsize=16)
def _latin_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _font(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, which has Latin letters only; for other scripts one of the system's, if it has any."""
    if any(ord(character) > _LAST_LATIN for character in text):
        return _wide_font(size) or _latin_font(size)
    return _latin_font(size)
