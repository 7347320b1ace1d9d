"""What is said of a dataset that can be used as it is, but is hardly meant so."""

from __future__ import annotations

import pytest

from engine.contract.errors import DataError
from engine.contract.events import Control, Warning_
from engine.data.config import load_config
from engine.data.preview import inspect
from tests.clips import draw_image, draw_item

from .caching import Heard, latents, write_config


def checked(path, *, fps=16) -> list[str]:
    said: list = []
    inspect(load_config(path), target_fps=fps, say=said.append, control=Control())
    return [event.message for event in said if isinstance(event, Warning_)]


def dataset(tmp_path, *tables: str):
    path = tmp_path / "data.toml"
    general = '[general]\nresolution = [64, 64]\ncaption_extension = ".txt"'
    caches = [f'[[datasets]]\ncache_directory = "cache{n}"\n{table}' for n, table in enumerate(tables)]
    path.write_text("\n".join([general, *caches]))
    return path


def with_captions(folder, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
        (folder / name).with_suffix(".txt").write_text("a caption of its own: " + name)


VIDEOS = 'video_directory = "clips"\ntarget_frames = [5]'
IMAGES = 'image_directory = "clips"'


def test_a_file_with_a_caption_that_is_not_read_is_named(tmp_path):
    draw_item(tmp_path / "clips", "read.mp4", frames=5, fps=16)
    with_captions(tmp_path / "clips", "left.gif", "also_left.png")
    (tmp_path / "clips" / "notes.txt").write_text("a caption of nothing")
    (tmp_path / "clips" / "read.json").write_text("beside a video that is read")
    (tmp_path / "clips" / "bare.gif").write_bytes(b"")
    (only,) = checked(dataset(tmp_path, VIDEOS))
    assert "clips: 2 files with captions are left out (also_left.png, left.gif)." in only
    assert ".mp4 .webm" in only and ".png" not in only.split("left.gif)")[1]


def test_what_another_dataset_reads_from_the_same_folder_is_not_left_out(tmp_path):
    draw_item(tmp_path / "clips", "read.mp4", frames=5, fps=16)
    draw_image(tmp_path / "clips" / "picture.png")
    (tmp_path / "clips" / "picture.txt").write_text("a picture")
    assert checked(dataset(tmp_path, VIDEOS, IMAGES)) == []
    with_captions(tmp_path / "clips", "left.tiff")
    (only,) = checked(dataset(tmp_path, VIDEOS, IMAGES))
    assert "1 file with a caption is left out (left.tiff)." in only


@pytest.mark.parametrize(
    ("rate", "native", "times"), [(30, 16, "1.9 times"), (60, 24, "2.5 times"), (24, 16, "1.5 times"), (20, 16, None),
                                  (16, 24, None), (16, 16, None)],
)  # fmt: skip
def test_a_video_much_faster_than_the_model_gives_slow_motion(tmp_path, rate, native, times):
    draw_item(tmp_path / "clips", "a.mp4", frames=9, fps=rate)
    said = checked(dataset(tmp_path, VIDEOS), fps=native)
    assert [times in text and f"source_fps = {rate}" in text for text in said] == ([True] if times else [])


def test_fast_videos_among_others_are_not_put_right_for_all_of_them(tmp_path):
    """A source_fps for all would scale the times of those that are right."""
    for rate in (16, 24, 30, 50, 60):
        draw_item(tmp_path / "clips", f"{rate}.mp4", frames=9, fps=rate)
    said = " ".join(checked(dataset(tmp_path, VIDEOS), fps=16))
    assert said.count("1 video runs at") == 4 and "Add source_fps" not in said
    for rate in (24, 30, 50, 60):
        assert f"Give such videos a dataset of their own with source_fps = {rate}, " in said


def test_a_length_that_is_reached_and_cannot_be_trained_on_is_not_called_too_short(tmp_path):
    """What the family refuses has an error of its own; only what the file is too short for is named here."""
    draw_item(tmp_path / "clips", "a.mp4", frames=20, fps=16)

    def cut(window):
        if window.count < 17:
            raise DataError("too short for a section")

    said, config = Heard(), load_config(dataset(tmp_path, 'video_directory = "clips"\ntarget_frames = [9, 17]'))
    inspection = inspect(config, target_fps=16, say=said, cut=cut)
    assert [window.count for window in inspection.windows] == [17] and len(inspection.problems) == 1
    assert said.warnings == []


def test_a_rate_that_is_declared_is_nobodys_oversight(tmp_path):
    draw_item(tmp_path / "clips", "a.mp4", frames=30, fps=30)
    assert checked(dataset(tmp_path, f"{VIDEOS}\nsource_fps = 30.0")) == []
    assert len(checked(dataset(tmp_path, VIDEOS))) == 1


def test_a_single_frame_has_no_motion(tmp_path):
    draw_item(tmp_path / "clips", "a.mp4", frames=9, fps=60)
    assert checked(dataset(tmp_path, 'video_directory = "clips"\ntarget_frames = [1]')) == []


def test_caching_says_it_too_but_not_of_what_is_there_already(tmp_path):
    draw_item(tmp_path / "videos", "a.mp4", frames=9, fps=30)
    with_captions(tmp_path / "videos", "left.gif")
    for expected in (1, 0):
        said = Heard()
        latents(write_config(tmp_path), say=said)
        for told in ("Add source_fps = 30 there", "left.gif"):
            assert len([text for text in said.warnings if told in text]) == expected
    draw_item(tmp_path / "videos", "b.mp4", frames=9, fps=60)
    latents(write_config(tmp_path), say=said)
    assert "a dataset of their own with source_fps = 60" in " ".join(said.warnings)
