"""The dataset file: what it means, and how wrong ones are answered."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from engine.contract.errors import DataError
from engine.data import config_keys
from engine.data.config import Dataset, load_config


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a dataset file into an empty folder that is also the current one."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "data.toml") -> Path:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return Path(name)

    return write


def video(**keys: object) -> str:
    lines = {"video_directory": "clips", "caption_extension": ".txt", "enable_bucket": True, **keys}
    return "[[datasets]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items())


def refusal(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        load_config(path)
    assert "\n" not in caught.value.message
    assert path.name in caught.value.message
    return caught.value


def test_the_page_names_every_key():
    page = (Path(__file__).parents[2] / "docs" / "DATASET.md").read_text(encoding="utf-8")
    refused = {"multiple_target"}
    assert [key for key in config_keys.KEYS if key not in page and key not in refused] == []


def test_a_key_of_another_way_to_cut_or_to_size_is_told(write):
    """The reference ignores them without a word."""
    text = "[general]\nresolution = 64\nbucket_no_upscale = true\n"
    idle = {"frame_stride": 3, "frame_sample": 2, "max_frames": 81, "enable_bucket": False}
    where = "data.toml: [[datasets]] #1"
    assert load_config(write(text + video(**idle))).warnings == (
        f'{where}: frame_stride is ignored: it belongs to frame_extraction = "slide".',
        f'{where}: frame_sample is ignored: it belongs to frame_extraction = "uniform".',
        f'{where}: max_frames is ignored: it belongs to frame_extraction = "full".',
        f"{where}: bucket_no_upscale is ignored without enable_bucket = true.",
    )
    for mode, key, default in (
        ("slide", "frame_stride", 1),
        ("uniform", "frame_sample", 1),
        ("full", "max_frames", 129),
    ):
        assert load_config(write(text + video(frame_extraction=mode, **{key: 7}))).warnings == ()
        assert load_config(write(text + video(**{key: default}))).warnings == ()


def test_defaults_and_precedence(write):
    text = '[general]\nresolution = 512\nbatch_size = 2\ncaption_extension = ".txt"\n'
    first, second = load_config(
        write(
            text
            + '[[datasets]]\nimage_directory = "pictures"\nbatch_size = 3\n'
            + '[[datasets]]\nvideo_directory = "clips"\nresolution = [320, 192]\n'
        )
    ).datasets
    assert (first.kind, first.batch_size, first.resolution) == ("image", 3, (512, 512))
    assert (second.kind, second.batch_size, second.resolution) == ("video", 2, (320, 192))
    assert second.caption_extension == ".txt" and second.index == 1
    assert first.cache_directory == first.source_directory == Path.cwd() / "pictures"
    bare = Dataset()
    for name in ("target_frames", "frame_extraction", "frame_stride", "frame_sample", "max_frames", "source_fps"):
        assert getattr(second, name) == getattr(bare, name)
    assert bare.resolution == (960, 544) and bare.max_frames == 129 and bare.fp_latent_window_size == 9


def test_json_means_the_same_as_toml(write):
    document = {"datasets": [{"video_directory": "clips", "caption_extension": ".txt", "target_frames": [25, 1]}]}
    dataset = load_config(write(json.dumps(document), "data.json")).datasets[0]
    assert dataset.target_frames == (1, 25)


def test_whole_numbers_are_taken_for_source_fps_where_the_reference_refuses_them(write):
    assert load_config(write(video(source_fps=30))).datasets[0].source_fps == 30.0


def test_target_frames_are_floored_sorted_and_made_unique_with_a_warning(write):
    said = []
    config = load_config(write(video(target_frames=[33, 2, 6, 9, 9])), say=said.append)
    assert config.datasets[0].target_frames == (1, 5, 9, 33)
    assert len(said) == len(config.warnings) == 1 and "2 to 1, 6 to 5" in said[0].message


def test_old_names_still_work_and_are_named(write):
    text = '[[datasets]]\nimage_directory = "p"\ncaption_extension = ".txt"\n'
    config = load_config(
        write(text + "flux_kontext_no_resize_control = true\nqwen_image_edit_control_resolution = 512\n")
    )
    dataset = config.datasets[0]
    assert dataset.no_resize_control and dataset.control_resolution == (512, 512)
    assert len(config.warnings) == 2
    both = load_config(write(text + "qwen_image_edit_control_resolution = 512\ncontrol_resolution = 256\n"))
    assert both.datasets[0].control_resolution == (256, 256) and "ignored" in both.warnings[0]


def test_all_keys_of_the_reference_are_known(write):
    text = """
[general]
resolution = [960, 544]
caption_extension = ".txt"
batch_size = 1
num_repeats = 2
enable_bucket = true
bucket_no_upscale = true
[[datasets]]
image_jsonl_file = "i.jsonl"
cache_directory = "cache_i"
multiple_target = false
no_resize_control = true
control_resolution = [512, 512]
fp_latent_window_size = 9
fp_1f_clean_indices = [0, 10]
fp_1f_target_index = 9
fp_1f_no_post = true
[[datasets]]
video_directory = "v"
control_directory = "vc"
cache_directory = "cache_v"
target_frames = [1, 25, 45]
frame_extraction = "uniform"
frame_stride = 10
frame_sample = 4
max_frames = 100
source_fps = 29.97
fp_latent_window_size = 9
"""
    image, clip = load_config(write(text)).datasets
    assert image.fp_1f_clean_indices == (0, 10) and image.fp_1f_target_index == 9 and image.num_repeats == 2
    assert clip.frame_sample == 4 and clip.control_directory == Path.cwd() / "vc" and clip.source_fps == 29.97


def test_relative_paths_are_found_from_the_current_folder_first_then_beside_the_file(tmp_path, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "here"
    (home / "clips").mkdir(parents=True)
    here.mkdir()
    (home / "data.toml").write_text(video(cache_directory="cache"), encoding="utf-8")
    monkeypatch.chdir(here)
    beside = load_config(Path("..") / "home" / "data.toml").datasets[0]
    assert beside.source_directory == home / "clips" and beside.cache_directory == home / "cache"
    (here / "clips").mkdir()
    current = load_config(Path("..") / "home" / "data.toml").datasets[0]
    assert current.source_directory == here / "clips" and current.cache_directory == here / "cache"


def test_what_belongs_to_media_beside_the_file_is_not_taken_from_the_current_folder(tmp_path, monkeypatch):
    """A folder of that name may well be there, of another dataset: its caches would be trained on, or removed."""
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home / "clips", home / "controls", here / "cache", here / "controls"):
        folder.mkdir(parents=True)
    (home / "data.toml").write_text(video(cache_directory="cache", control_directory="controls"), encoding="utf-8")
    monkeypatch.chdir(here)
    found = load_config(home / "data.toml").datasets[0]
    assert found.cache_directory == home / "cache" and found.control_directory == home / "controls"
    (home / "controls").rmdir()
    assert load_config(home / "data.toml").datasets[0].control_directory == here / "controls"


def test_a_jsonl_without_cache_directory_uses_its_folder_where_the_reference_crashes(write):
    text = '[[datasets]]\nenable_bucket = true\nvideo_jsonl_file = "lists/a.jsonl"\n'
    dataset = load_config(write(text)).datasets[0]
    assert dataset.cache_directory == Path.cwd() / "lists" and dataset.source_jsonl == Path.cwd() / "lists/a.jsonl"


def test_caches_may_not_be_shared_even_under_two_names(write):
    error = refusal(write(video(cache_directory="a") + video(video_directory="other", cache_directory="b/../a")))
    assert "[[datasets]] #2: cache_directory" in error.message and "#1" in error.message


WRONG = {
    "unknown key": (video(target_frame=[1]), ["[[datasets]] #1: unknown key target_frame"], "target_frames"),
    "in general": ('[general]\nvideo_directory = "x"\n' + video(), ["[general]: video_directory"], "[[datasets]]"),
    "unknown in general": (
        "[general]\nresolutoin = 1\n" + video(),
        ["[general]: unknown key resolutoin"],
        "resolution",
    ),
    "image key": (video(fp_1f_no_post=True), ["#1: fp_1f_no_post is a key of image datasets"], ""),
    "wrong type": (video(target_frames=25), ["target_frames is 25 (a whole number)", "a list of whole"], ""),
    "text for number": (video(batch_size="2"), ["batch_size is '2' (text)", "a whole number, 1 or more"], ""),
    "yes for number": (video(num_repeats=True), ["num_repeats is true (a yes/no value)"], ""),
    "text for yes": (video(preserve_prior="yes"), ["preserve_prior is 'yes'", "true or false"], ""),
    "prior in general": ("[general]\npreserve_prior = true\n" + video(), ["preserve_prior is not allowed"], "tables"),
    "number for yes": (video(enable_bucket=1), ["enable_bucket is 1", "true or false"], ""),
    "out of range": (video(frame_stride=0), ["frame_stride is 0", "1 or more"], ""),
    "zero repeats": (video(num_repeats=0), ["num_repeats is 0"], ""),
    "fps": (video(source_fps=0.0), ["source_fps is 0.0", "above 0"], ""),
    "mode": (video(frame_extraction="uniforn"), ["frame_extraction", "did you mean uniform?"], ""),
    "three sides": (video(resolution=[1, 2, 3]), ["resolution is [1, 2, 3]", "[width, height]"], ""),
    "tiny": (video(resolution=8), ["resolution is 8", "16 or more"], ""),
    "multiple": (video(enable_bucket=False, resolution=[850, 480]), ["850x480", "multiple of 16"], "[848, 480]"),
    "empty list": (video(target_frames=[]), ["target_frames is []"], ""),
    "no source": ("[[datasets]]\nbatch_size = 1\n", ["#1: none of image_directory"], ""),
    "two sources": (video(image_directory="x"), ["image_directory and video_directory are both set"], ""),
    "no captions": ('[[datasets]]\nvideo_directory = "c"\nenable_bucket = true\n', ["caption_extension"], ".txt"),
    "extension": (video(caption_extension="txt"), ["caption_extension is 'txt'", '".txt"'], ""),
    "layered": (
        '[[datasets]]\nimage_directory = "c"\ncaption_extension = ".txt"\nmultiple_target = true\n',
        ["multiple_target"],
        "Remove",
    ),
    "no datasets": ("[general]\nbatch_size = 1\n", ["no dataset"], "[[datasets]]"),
    "one bracket": ('[datasets]\nvideo_directory = "c"\n', ["list of tables"], "two brackets"),
    "other table": (video() + "[generel]\n", ["unknown table or key generel"], "general"),
    "outside": ("batch_size = 1\n" + video(), ["batch_size stands outside"], "[general]"),
    "syntax": ("[general]\nbatch_size = = 1\n", ["line 2, column 14"], ""),
    "backslash": ('[[datasets]]\nvideo_directory = "C:\\clips"\n', ["not valid TOML", "line 2"], "single quotes"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_names_file_table_and_key(write, name):
    text, parts, hint = WRONG[name]
    error = refusal(write(text))
    for part in parts:
        assert part in error.message
    assert hint in error.hint
    assert error.exit_status == 2


def test_wrong_files(write, tmp_path):
    missing = refusal(Path("missing.toml"))
    assert "no such dataset file" in missing.message and f"It was looked for in {Path.cwd()}." in missing.hint
    assert ".toml or .json" in refusal(write("", "data.yaml")).message
    assert "line 1, column 2" in refusal(write("{datasets}", "bad.json")).message
    (tmp_path / "latin.toml").write_bytes(b'[general]\ncaption_extension = "\xe9"\n')
    assert "UTF-8" in refusal(Path("latin.toml")).message
    (tmp_path / "folder.toml").mkdir()
    assert "folder" in refusal(Path("folder.toml")).message
    assert refusal(tmp_path / "latni.toml").hint.startswith("Did you mean latin.toml")


def test_a_byte_order_mark_is_no_syntax_error(tmp_path):
    path = tmp_path / "notepad.toml"
    path.write_bytes(b"\xef\xbb\xbf" + video().encode())
    assert load_config(path).datasets


def test_an_unreadable_file_is_said(write, monkeypatch):
    path = write(video())

    def denied(*_args: object, **_keywords: object) -> bytes:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert "Permission denied" in refusal(path).message
