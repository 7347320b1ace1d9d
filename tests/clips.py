"""Draws small real media files for tests: every frame carries its number, so that a test sees which frame it got.

The number stands as 4 x 4 black or white squares in the middle of the picture (16 bits) and survives compression,
scaling and centre cropping; around it a bright bar moves over a dark ground.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

_GRID = 4  # squares a side
_SHARE = 0.5  # of the shorter side that the number covers


def picture(number: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """The frame with this number (0..65535), (height, width, 3) uint8 RGB; size is (width, height)."""
    width, height = size
    image = np.full((height, width, 3), 40, dtype=np.uint8)
    image[:, number * 5 % width :][:, : max(width // 8, 1)] = (200, 120, 60)
    for bit, (top, left, side) in enumerate(_squares(width, height)):
        image[top : top + side, left : left + side] = 235 if number >> bit & 1 else 16
    return image


def number_of(image: np.ndarray, *, original: tuple[int, int] | None = None) -> int:
    """The number that a picture carries. `original` is the drawn (width, height) if it was brought to a bucket."""
    height, width = image.shape[:2]
    number = 0
    scale, left_cut, top_cut = 1.0, 0.0, 0.0
    if original:
        scale = max(width / original[0], height / original[1])
        left_cut, top_cut = (original[0] * scale - width) / 2, (original[1] * scale - height) / 2
    for bit, (top, left, side) in enumerate(_squares(*(original or (width, height)))):
        row, column = int((top + side / 2) * scale - top_cut), int((left + side / 2) * scale - left_cut)
        number |= int(image[row, column].mean() > 125) << bit
    return number


def _squares(width: int, height: int) -> list[tuple[int, int, int]]:
    side = max(int(min(width, height) * _SHARE) // _GRID, 2)
    top, left = (height - side * _GRID) // 2, (width - side * _GRID) // 2
    return [(top + row * side, left + column * side, side) for row in range(_GRID) for column in range(_GRID)]


def draw_video(
    path: Path,
    *,
    size: tuple[int, int] = (64, 48),
    fps: float = 16,
    frames: int = 20,
    times_s: Sequence[float] | None = None,
    rotation: int = 0,
    b_frames: int = 2,
    keyframe_every: int = 12,
    codec: str = "libx264",
    faststart: bool = False,
    first_number: int = 0,
) -> Path:
    """Write a video whose frames are `picture(first_number)`, `picture(first_number + 1)` …; returns its path.

    `times_s` gives each frame its own time (variable frame rate). `rotation` is metadata, degrees counter-clockwise;
    `size` is that of the stored picture. Both sides must be even.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = Fraction(fps).limit_denominator(1001)
    options = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", container_options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.gop_size = keyframe_every
        if codec == "libx264":
            stream.options = {"crf": "18", "preset": "ultrafast", "bf": str(b_frames), "threads": "1"}
        stream.codec_context.time_base = Fraction(1, 12800) if times_s is not None else 1 / rate
        if rotation:
            stream.set_display_rotation(rotation)
        for index in range(len(times_s) if times_s is not None else frames):
            frame = av.VideoFrame.from_ndarray(picture(first_number + index, size), format="rgb24")
            frame.time_base = stream.codec_context.time_base
            frame.pts = round(times_s[index] * 12800) if times_s is not None else index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def draw_item(folder: Path, name: str, *, caption: str = "a bar moves over a dark ground", **options) -> Path:
    """A video and its caption file `<stem>.txt`."""
    path = draw_video(folder / name, **options)
    path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def draw_image(path: Path, *, number: int = 0, size: tuple[int, int] = (64, 48)) -> Path:
    """One image; returns its path."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(number, size)).save(path)
    return path
