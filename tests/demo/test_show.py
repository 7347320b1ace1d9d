"""The picture that shows what a LoRA has changed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from engine.demo.kits import kit_of
from engine.demo.prepare import Prepared
from engine.demo.show import newest_videos, thumbnails, write_comparison
from engine.media.writing import write_video


def draw(folder: Path, name: str, colour: tuple[int, int, int], *, second: int) -> Path:
    """A clip of one colour that was written at this second."""
    folder.mkdir(exist_ok=True)
    write_video(folder / name, iter([np.full((64, 64, 3), colour, np.uint8)] * 5), fps=16)
    os.utime(folder / name, (second, second))
    return folder / name


def test_without_the_lora_is_left_with_it_right_and_older_videos_are_left_out(tmp_path: Path) -> None:
    kit = replace(kit_of("wan"), prompts=("first", "second"))
    prepared = Prepared(tmp_path, "wan", kit, ())
    for number, name in enumerate(("old.mp4", "b.mp4", "a.mp4")):
        draw(prepared.without_lora, name, (0, 0, 250) if number else (0, 250, 0), second=number)
        draw(prepared.videos, name, (250, 0, 0) if number else (0, 250, 0), second=number)
    videos = newest_videos(prepared.videos, 2)
    assert [video.name for video in videos] == ["b.mp4", "a.mp4"], "in the order of their prompts"
    sheet = np.asarray(Image.open(write_comparison(prepared, videos)).convert("RGB")).astype(int)
    left, right = np.split(sheet, [sheet.shape[1] // 2], axis=1)
    for side, shown in ((left, 2), (right, 0)):
        counts = [int((side[..., channel] > side.sum(-1) - side[..., channel] + 100).sum()) for channel in range(3)]
        assert counts[shown] > 100_000 and sum(counts) == counts[shown]


def test_small_frames_are_enlarged_without_a_blur(tmp_path: Path) -> None:
    shown = thumbnails(draw(tmp_path / "videos", "a.mp4", (200, 40, 40), second=1))
    assert len(shown) == 5 and shown[0].shape == (128, 128, 3)
    assert (shown[0][::2, ::2] == shown[0][1::2, 1::2]).all()
