"""`cache-latents --debug_mode …` as it is typed: what is drawn or written, and that nothing is cached."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from engine.media.video import probe, read_frames
from tests.clips import draw_image, draw_item, number_of


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Videos with a cache folder of their own, and an image whose cache folder is its own."""
    monkeypatch.chdir(tmp_path)
    draw_item(tmp_path / "clips", "a.mp4", frames=12)
    draw_item(tmp_path / "clips", "b.mp4", frames=12)
    draw_image(tmp_path / "images" / "c.png", number=7)
    (tmp_path / "images" / "c.txt").write_text("a picture")
    path = tmp_path / "data.toml"
    path.write_text(
        '[general]\nresolution = [64, 48]\ncaption_extension = ".txt"\n'
        '[[datasets]]\nvideo_directory = "clips"\ncache_directory = "cache"\ntarget_frames = [5]\n'
        'frame_extraction = "chunk"\n[[datasets]]\nimage_directory = "images"\n'
    )
    return path


def show(engine, dataset: Path, mode: str, *more: object):
    return engine("cache-latents", "wan", "--dataset_config", dataset, "--debug_mode", mode, *more)


def caches(folder: Path) -> list[Path]:
    return list(folder.rglob("*.safetensors"))


def test_video_writes_each_clip_beside_its_cache_but_never_among_the_media(engine, dataset, tmp_path):
    result = show(engine, dataset, "video")
    assert result.status == 0 and "wrote 5 clips" in result.err, result.err
    names = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert names == [f"{stem}_{start:05d}-005_0064x0048_wan.mp4" for stem in "ab" for start in (0, 5)]
    second = tmp_path / "cache" / "a_00005-005_0064x0048_wan.mp4"
    assert probe(second).fps == 16 and [number_of(frame) for frame in read_frames(second)] == [5, 6, 7, 8, 9]
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["c.png", "c.txt", "shown"]
    with Image.open(tmp_path / "images" / "shown" / "c_0064x0048_wan.jpg") as image:
        assert image.size == (64, 48)
    assert caches(tmp_path) == []


def test_image_draws_a_sheet_and_says_where(engine, dataset, tmp_path):
    result = show(engine, dataset, "image")
    assert result.status == 0 and str(tmp_path / "data_preview.png") in result.err
    assert (tmp_path / "data_preview.png").stat().st_size > 1000 and caches(tmp_path) == []


def test_console_draws_as_wide_and_as_many_as_is_asked_for(engine, dataset):
    result = show(engine, dataset, "console", "--console_width", 41, "--console_num_images", 1, "--console_back", "red")
    assert result.status == 0 and "drew 2 of 5 clips" in result.err, result.err
    drawn = [line for line in result.out.splitlines() if "▀" in line]
    assert {line.count("▀") for line in drawn} == {41} and "255;0;0" in result.out
    assert "a.mp4  64x48, frames 0 to 4" in result.out and "b.mp4" not in result.out and "c.png  64x48" in result.out
    assert show(engine, dataset, "console").out.count("frames 5 to 9") == 2


def test_what_cannot_be_read_is_said_and_what_cannot_be_shown_is_refused(engine, dataset, tmp_path):
    (tmp_path / "clips" / "b.mp4").write_text("no video")
    result = show(engine, dataset, "console")
    assert result.status == 0 and "b.mp4: this is not a video" in result.err and "a.mp4" in result.out
    assert (
        "--console_back greenish is not a colour" in show(engine, dataset, "console", "--console_back", "greenish").err
    )
    result = show(engine, dataset, "console", "--events")
    assert result.status == 2
