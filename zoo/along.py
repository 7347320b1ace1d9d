"""A picture of how a concept was learned: samples along a training, and its loss curve.

Knows the names that a training gives its files, and nothing else of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from engine.contract.files import whole_file
from engine.media.images import encoded
from engine.media.sheet import draw_sheet
from engine.media.video import read_frames

ENLARGED, MARGIN = 2, 24  # times; pixels


def write_picture(folder: Path, picture: Path, *, steps: Sequence[int], prompts: Sequence[str]) -> Path:
    """A JPEG of what a training's output folder holds: for each of its sample prompts the middle frame at each of these
    steps, and beside them the curve."""
    shown = ", ".join(f"{step:,}" for step in steps)
    rows = [(prompt, [_middle(folder, step, number) for step in steps]) for number, prompt in enumerate(prompts)]
    sheet = draw_sheet(rows, title=f"After {shown} steps", columns=1)
    with Image.open(next(folder.glob("*_loss.png"))) as drawn:
        curve = drawn.convert("RGB").resize(
            (sheet.width, drawn.height * sheet.width // drawn.width), Image.Resampling.LANCZOS
        )
    whole = Image.new("RGB", (sheet.width + curve.width + MARGIN, sheet.height), sheet.getpixel((0, 0)))
    whole.paste(sheet)
    whole.paste(curve, (sheet.width, (sheet.height - curve.height) // 2))
    with whole_file(picture) as temporary:
        temporary.write_bytes(encoded(whole, "JPEG", quality=88))
    return picture


def _middle(folder: Path, step: int, number: int) -> np.ndarray:
    """The middle frame of a sample, enlarged."""
    when = f"{step:06}" if step else "e000000"
    video = max((folder / "sample").glob(f"*_{when}_{number:02}_*.mp4"), key=lambda path: path.stat().st_mtime_ns)
    frames = list(read_frames(video))
    return frames[len(frames) // 2].repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)
