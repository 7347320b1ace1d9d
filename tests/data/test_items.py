"""Items of a folder or a list: captions, controls, and what is wrong with them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from engine.contract.errors import DataError
from engine.data import items
from engine.data.config import Dataset
from engine.media import suffixes
from tests.clips import draw_image


def touch(folder: Path, *names: str, caption: str | None = "a caption") -> None:
    """Empty media files (nothing here opens them) and, unless None, their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        if caption is not None:
            path.with_name(path.stem + ".txt").write_text(caption, encoding="utf-8")


def of_folder(folder: Path, kind: str = "video", **values: object) -> Dataset:
    return Dataset(kind=kind, source_directory=folder, caption_extension=".txt", **values)


def of_list(path: Path, lines: list[object], kind: str = "video", **values: object) -> Dataset:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return Dataset(kind=kind, source_jsonl=path, **values)


def refusal(dataset: Dataset) -> str:
    with pytest.raises(DataError) as caught:
        items.sources(dataset)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_folder_with_brackets_and_suffixes_of_both_cases(tmp_path):
    folder = tmp_path / "clips [new]"
    touch(folder, "b.MP4", "a.mp4", "c.two.dots.WebM", "notes.pdf", "._a.mp4")
    found = items.sources(of_folder(folder))
    assert [source.path.name for source in found] == ["a.mp4", "b.MP4", "c.two.dots.WebM"]
    assert [source.stem for source in found] == ["a", "b", "c.two.dots"]
    assert {source.media for source in found} == {"video"} and found[0].caption == "a caption"


@pytest.mark.skipif(".jxl" in suffixes.images(), reason="there is a plugin for JPEG XL here")
def test_images_in_jpeg_xl_are_not_left_out_silently(tmp_path):
    touch(tmp_path, "a.png", "b.jxl", "c.JXL")
    said = refusal(of_folder(tmp_path, "image"))
    assert "2 files in JPEG XL cannot be read without its plugin (b.jxl, c.JXL)." in said


def test_the_contact_sheet_is_no_item_unless_it_has_a_caption(tmp_path):
    touch(tmp_path, "a.png")
    touch(tmp_path, "data_preview.png", caption=None)
    dataset = of_folder(tmp_path, "image", config_path=tmp_path / "data.toml")
    assert [source.path.name for source in items.sources(dataset)] == ["a.png"]
    touch(tmp_path, "data_preview.png")
    assert [source.path.name for source in items.sources(dataset)] == ["a.png", "data_preview.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_names_that_are_no_utf_8_are_refused_before_caches_bear_them(tmp_path):
    """safetensors writes a file of such a name, and does not open it."""
    touch(tmp_path, "a.mp4", b"\x83e\x83X\x83g.mp4".decode("utf-8", "surrogateescape"))
    said = refusal(of_folder(tmp_path))
    assert "1 of 2 videos have names that are not UTF-8" in said
    found, problems = items.survey(of_folder(tmp_path))
    assert ([source.path.name for source in found], len(problems)) == (["a.mp4"], 1)


def test_captions_are_stripped_and_lose_a_byte_order_mark(tmp_path):
    touch(tmp_path, "a.png", caption="\ufeff  a caption\n\n")
    assert items.sources(of_folder(tmp_path, "image"))[0].caption == "a caption"


def test_a_caption_of_several_lines_is_the_same_from_windows(tmp_path):
    """Line ends are tokens to LLaMA; the reference reads both alike."""
    touch(tmp_path, "a.png", "b.png")
    (tmp_path / "a.txt").write_bytes(b"a cat\r\nasleep\r\n")
    (tmp_path / "b.txt").write_bytes(b"a cat\nasleep\n")
    captions = {source.caption for source in items.sources(of_folder(tmp_path, "image"))}
    assert captions == {"a cat\nasleep"}


def test_media_without_caption_are_named_where_the_reference_drops_them(tmp_path):
    touch(tmp_path, "ok.png")
    touch(tmp_path, *(f"bare{n}.png" for n in range(5)), caption=None)
    message = refusal(of_folder(tmp_path, "image"))
    assert "5 of 6 images have no caption: bare0.png, bare1.png, bare2.png, … (expected" in message
    assert "expected bare0.txt beside bare0.png" in message


def test_equal_stems_are_refused_where_the_reference_overwrites_caches(tmp_path):
    touch(tmp_path, "a.png", "a.jpg")
    message = refusal(of_folder(tmp_path, "image"))
    assert "a.png" in message and "a.jpg" in message
    lines = [{"video_path": str(tmp_path / name / "x.mp4"), "caption": ""} for name in "pq"]
    touch(tmp_path, "p/x.mp4", "q/x.mp4")
    assert "cache file, named x" in refusal(of_list(tmp_path / "l.jsonl", lines))


def test_an_empty_folder_says_what_was_looked_for(tmp_path):
    touch(tmp_path, "a.png", "b.gif", caption=None)
    message = refusal(of_folder(tmp_path))
    assert "no video" in message and "*.mp4" in message and "found 2 other files" in message
    assert "looked for *.png" in refusal(of_folder(tmp_path / "none", "image")) if (tmp_path / "none").mkdir() else True


def test_missing_and_unreadable_folders(tmp_path, monkeypatch):
    assert "no such folder" in refusal(of_folder(tmp_path / "gone"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such folder") as caught:
        items.sources(of_folder(tmp_path / "gone"))
    assert "from the current folder, else from the dataset file's" in caught.value.hint
    touch(tmp_path, "file.txt", caption=None)
    assert "this is a file" in refusal(of_folder(tmp_path / "file.txt"))

    def denied(_folder: object) -> None:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(os, "scandir", denied)
    assert "cannot be read (Permission denied)" in refusal(of_folder(tmp_path))


def test_captions_that_cannot_be_read_are_all_reported(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.txt").unlink()
    found, problems = items.survey(of_folder(tmp_path))
    assert [source.stem for source in found] == ["c"]
    assert ["UTF-8" in problems[0].message, "no caption" in problems[1].message] == [True, True]
    assert "(1 more problem; " in refusal(of_folder(tmp_path))


def test_image_controls_go_to_the_longest_stem_in_numeric_order(tmp_path):
    touch(tmp_path / "i", "a.png", "a_1.png")
    touch(tmp_path / "c", "a.png", "a_10.png", "a_2.jpg", "a_1_0.png", "a_1_1.png", "a_x.png", caption=None)
    dataset = of_folder(tmp_path / "i", "image", control_directory=tmp_path / "c", fp_1f_clean_indices=(0, 1))
    found = {source.stem: [path.name for path in source.controls] for source in items.sources(dataset)}
    assert found == {"a": ["a.png", "a_2.jpg"], "a_1": ["a_1_0.png", "a_1_1.png"]}


def test_missing_controls_are_named(tmp_path):
    touch(tmp_path / "i", "a.png", "b.png")
    touch(tmp_path / "c", "a.png", caption=None)
    message = refusal(of_folder(tmp_path / "i", "image", control_directory=tmp_path / "c"))
    assert "1 of 2 images lack a control: b.png (looked for b.* or b_N.*)" in message
    touch(tmp_path / "v", "a.mp4")
    assert "looked for a.mp4 or a/" in refusal(of_folder(tmp_path / "v", control_directory=tmp_path / "c"))


def test_video_controls_by_name_then_folder_then_other_suffix(tmp_path):
    touch(tmp_path / "v", "a.mp4", "b.mp4", "c.mp4")
    touch(tmp_path / "c", "a.mp4", "b.mov", "c.mkv", "b/0.png", caption=None)
    found = items.sources(of_folder(tmp_path / "v", control_directory=tmp_path / "c"))
    assert [source.controls[0].relative_to(tmp_path / "c").as_posix() for source in found] == ["a.mp4", "b", "c.mkv"]


def test_a_list_of_videos_with_files_and_folders(tmp_path, monkeypatch):
    touch(tmp_path, "a.mp4", "frames.v2/1.png", caption=None)
    lines = [
        {"video_path": str(tmp_path / "a.mp4"), "caption": " one ", "extra": 1},
        "",
        {"video_path": "frames.v2/", "caption": "two"},
    ]
    dataset = of_list(tmp_path / "l.jsonl", lines)
    monkeypatch.chdir(tmp_path.parent)  # so the relative path is found beside the list
    found = items.sources(dataset)
    assert [(source.media, source.caption, source.stem) for source in found] == [
        ("video", "one", "a"),
        ("frames", "two", "frames"),
    ]


def test_a_list_of_images_takes_controls_of_any_numbering(tmp_path):
    touch(tmp_path, *"abcd", caption=None)
    path = {name: str(tmp_path / name) for name in "abcd"}
    line = {"image_path": path["a"], "caption": "", "control_path_7": path["c"], "control_path_0003": path["b"]}
    dataset = of_list(tmp_path / "l.jsonl", [line], "image", fp_1f_clean_indices=(0, 1))
    assert [control.name for control in items.sources(dataset)[0].controls] == ["b", "c"]


def test_faulty_lines_are_all_reported_by_number(tmp_path):
    touch(tmp_path, "a.mp4", caption=None)
    good = {"video_path": str(tmp_path / "a.mp4"), "caption": "x"}
    lines = ["{", "[1]", {"caption": "x"}, {"video_path": "a.mp4"}, {"video_path": 3, "caption": ""}, good]
    lines.append({"video_path": str(tmp_path / "gone.mp4"), "caption": "x"})
    found, problems = items.survey(of_list(tmp_path / "l.jsonl", lines))
    assert len(found) == 1
    texts = [problem.message for problem in problems]
    expected = ["line 1, column 2", "line 2: an object", "line 3: video_path is missing", "line 4: caption is missing"]
    expected += ["line 5: video_path must be text", "line 7: there is no file"]
    assert len(texts) == len(expected)
    for text, part in zip(texts, expected, strict=True):
        assert part in text and "l.jsonl" in text


def test_controls_in_a_list_are_all_or_none(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4", caption=None)
    lines = [{"video_path": str(tmp_path / name), "caption": ""} for name in ("a.mp4", "b.mp4")]
    lines[0]["control_path"] = str(tmp_path / "b.mp4")
    assert "1 of 2 lines lack control_path: b.mp4" in refusal(of_list(tmp_path / "l.jsonl", lines))


def test_a_missing_or_empty_list(tmp_path):
    assert "no such list" in refusal(Dataset(source_jsonl=tmp_path / "gone.jsonl"))
    assert "lists no video" in refusal(of_list(tmp_path / "l.jsonl", []))


def test_frames_of_a_folder_are_sorted_and_needed(tmp_path):
    for number in (2, 0, 1):
        draw_image(tmp_path / "f" / f"{number:03d}.png", number=number)
    (tmp_path / "f" / "readme.txt").write_text("")
    assert [path.stem for path in items.frame_files(tmp_path / "f")] == ["000", "001", "002"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image"):
        items.frame_files(tmp_path / "empty")
