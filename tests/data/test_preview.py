"""Looking at a dataset: all problems at once, the bucket table, the contact sheet."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from engine.contract.errors import Stopped
from engine.contract.events import Control, Progress, Warning_
from engine.data.config import load_config
from engine.data.preview import bucket_table, draw_preview, inspect, render_table
from tests.clips import draw_image, draw_item, draw_video


@pytest.fixture
def config(tmp_path):
    """Good and broken videos and images in two datasets."""
    clips, pictures = tmp_path / "clips", tmp_path / "pictures"
    draw_item(clips, "long.mp4", frames=30, caption="a long one")
    draw_item(clips, "wide.mp4", frames=12, size=(128, 48))
    draw_item(clips, "short.mp4", frames=3)
    draw_item(clips, "text.mp4", frames=3).write_text("no video")
    draw_item(clips, "cut.mp4", frames=30, faststart=True)
    (clips / "cut.mp4").write_bytes((clips / "cut.mp4").read_bytes()[:-800])
    draw_video(clips / "bare.mp4", frames=9)
    draw_image(pictures / "a.png", number=5)
    (pictures / "a.txt").write_text("")
    path = tmp_path / "data.toml"
    path.write_text(
        f"""
[general]
resolution = [64, 64]
enable_bucket = true
caption_extension = ".txt"
[[datasets]]
video_directory = "{clips.as_posix()}"
target_frames = [5, 13]
frame_extraction = "chunk"
batch_size = 2
num_repeats = 3
[[datasets]]
image_directory = "{pictures.as_posix()}"
"""
    )
    return load_config(path)


def test_every_problem_is_found_at_once(config):
    said = []
    found = inspect(config, target_fps=16, say=said.append)
    messages = [problem.message for problem in found.problems]
    parts = {
        "clips: ": "1 of 6 videos have no caption: bare.mp4",
        "cut.mp4: ": "incomplete",
        "short.mp4: ": "needs at least 5 frames and has 3",
        "text.mp4: ": "not a video",
    }
    assert len(messages) == len(parts)
    for name, part in parts.items():
        assert any(name in message and part in message for message in messages), name
    warnings = [event.message for event in said if isinstance(event, Warning_)]
    assert any("1 caption is empty (a.png)" in text for text in warnings)
    assert any("1 video is too short for a clip of 13 frames" in text for text in warnings)
    progress = [event for event in said if isinstance(event, Progress)]
    assert (progress[-1].done, progress[-1].total) == (6, 6)


def equal_captions(tmp_path, captions: dict[str, str], *, folders: int = 1) -> list[str]:
    """What is warned of in a dataset of images with these captions, listed `folders` times."""
    for name, caption in captions.items():
        draw_image(tmp_path / "pictures" / f"{name}.png")
        (tmp_path / "pictures" / f"{name}.txt").write_text(caption)
    path, said = tmp_path / "equal.toml", []
    caches = [f'[[datasets]]\nimage_directory = "pictures"\ncache_directory = "{n}"' for n in range(folders)]
    path.write_text("\n".join(['[general]\nresolution = [64, 64]\ncaption_extension = ".txt"', *caches]))
    inspect(load_config(path), target_fps=16, say=said.append)
    return [event.message for event in said if isinstance(event, Warning_)]


def test_items_with_the_same_caption_are_named(tmp_path):
    captions = {"a": "one", "b": "One", "c": "one\n", "d": "two", "e": "two", "f": "one", "g": "one"}
    assert equal_captions(tmp_path, captions) == [
        "4 items have the same caption (a.png, c.png, f.png, …).",
        "2 items have the same caption (d.png, e.png).",
    ]


def test_a_file_in_two_datasets_and_empty_captions_are_no_such_case(tmp_path):
    warnings = equal_captions(tmp_path, {"a": "one", "b": "", "c": ""}, folders=2)
    assert len(warnings) == 2 and all("2 captions are empty (b.png, c.png)." in text for text in warnings)


def test_of_many_equal_captions_a_few_are_said_in_full(tmp_path):
    names = [f"{caption}{number}" for caption in "abcde" for number in (1, 2)]
    warnings = equal_captions(tmp_path, {name: f"caption {name[0]}" for name in names})
    assert len(warnings) == 4 and warnings[-1] == "2 more captions belong to several items."


def test_the_table_counts_batches_as_training_forms_them(config):
    found = inspect(config, target_fps=16, say=lambda event: None)
    rows = bucket_table(found.windows)
    assert [(row.dataset, row.width, row.height, row.frames, row.samples, row.batches) for row in rows] == [
        (1, 64, 64, 5, 6, 9), (1, 64, 64, 13, 2, 3), (1, 80, 48, 5, 2, 3), (2, 64, 64, 1, 1, 1),
    ]  # fmt: skip
    lines = render_table(rows).splitlines()
    assert len(lines) == 6 and lines[0].split()[:3] == ["dataset", "bucket", "frames"]
    assert lines[-1].split() == ["all", "11", "16"]


def test_the_sheet_shows_the_clips(config, tmp_path):
    found = inspect(config, target_fps=16, say=lambda event: None)
    path, faults = draw_preview(
        found.windows, tmp_path / "sheet.png", items=2, frames=3, title="t", say=lambda event: None
    )
    assert not faults and np.asarray(Image.open(path)).std() > 5


def test_a_stop_is_obeyed(config):
    control = Control()
    control.request_stop()
    with pytest.raises(Stopped):
        inspect(config, target_fps=16, say=lambda event: None, control=control)
