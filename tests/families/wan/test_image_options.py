"""What a task needs to start from is asked for before anything is loaded, and what it would ignore is refused."""

from __future__ import annotations

import pytest

from engine.contract.errors import OptionError
from engine.families.wan.image_options import WanInputs, settings_of
from engine.sampling.prompts import PromptLine, parse_line

FLAGS = PromptLine(prompt="a cat", where="--prompt")


@pytest.fixture
def files(tmp_path):
    names = ("start.png", "end.png", "clip.mp4", "other.png")
    for name in names:
        (tmp_path / name).write_bytes(b"")
    return {name.partition(".")[0]: str(tmp_path / name) for name in names}


def asked(task: str, *, has_clip: bool = True, line: PromptLine = FLAGS, **given):
    return settings_of(WanInputs(**given), line, task=task, has_clip=has_clip)


@pytest.mark.parametrize(
    ("task", "given", "words"),
    [
        ("i2v-14B", [], "needs --image_path"),
        ("flf2v-14B", ["image_path=start"], "needs --end_image_path"),
        ("t2v-14B-FC", [], "needs --control_path"),
        ("i2v-14B-FC", ["control_path=clip"], "needs --image_path"),
        ("t2v-14B", ["image_path=start"], "--image_path means nothing to --task t2v-14B"),
        ("t2v-14B", ["control_path=clip"], "--control_path means nothing"),
        ("t2v-14B-FC", ["control_path=clip", "end_image_path=end"], "--end_image_path means nothing"),
        ("i2v-14B", ["image_path=start", "reference_image_path=other"], "--reference_image_path means nothing"),
        ("i2v-A14B", ["image_path=start", "one_frame_inference="], "--one_frame_inference means nothing"),
        ("i2v-14B", ["image_path=start", "control_image_path=other"], "--control_image_path means nothing"),
        (
            "i2v-14B",
            ["image_path=start", "end_image_path=end", "one_frame_inference="],
            "--end_image_path means nothing",
        ),
        ("i2v-14B", ["image_path=start", "video_path=clip", "one_frame_inference="], "--video_path means nothing"),
        ("i2v-14B", ["one_frame_inference="], "needs --control_image_path"),
        ("flf2v-14B", ["image_path=start", "one_frame_inference="], "sees two images"),
        ("i2v-14B", ["image_path=missing.png"], "there is no file missing.png"),
        ("vace-14B", ["src_mask=clip"], "needs --control_path"),
        ("vace-14B", ["reference_image_path=other"], "--reference_image_path means nothing to --task vace-14B"),
        ("t2v-14B-FC", ["control_path=clip", "src_mask=other"], "--src_mask means nothing"),
        ("camera-14B", [], "needs --camera_pose"),
        ("camera-14B", ["camera_pose=zoom_in", "control_camera_txt=other"], "both say what the camera does"),
        ("i2v-14B", ["image_path=start", "camera_pose=zoom_in"], "--camera_pose means nothing"),
    ],
)
def test_what_is_missing_or_useless_is_one_sentence(files, task, given, words):
    options = {}
    for word in given:
        name, _, value = word.partition("=")
        if name == "one_frame_inference":
            value = "target_index=1"
        path = files.get(value, value)
        options[name] = (path,) if name == "control_image_path" else path
    with pytest.raises(OptionError, match=words):
        asked(task, **options)


def test_places_and_control_images_must_match(files):
    both = (files["start"], files["end"])
    with pytest.raises(OptionError, match="1 places for 2 control images"):
        asked("flf2v-14B", control_image_path=both, one_frame_inference="control_index=0")
    with pytest.raises(OptionError, match="same place in time"):
        asked("i2v-14B", control_image_path=both[:1], one_frame_inference="target_index=0,control_index=0")
    with pytest.raises(OptionError, match="more than 2"):
        asked("i2v-14B", control_image_path=(*both, files["other"]), one_frame_inference="control_index=0;1;2")
    assert asked("flf2v-14B", control_image_path=both, one_frame_inference="control_index=0;2")


def test_an_image_needs_clip_before_anything_is_loaded(files):
    with pytest.raises(OptionError, match="there is no --clip"):
        asked("i2v-14B", has_clip=False, image_path=files["start"])
    assert asked("t2v-14B-FC", has_clip=False, control_path=files["clip"])


def test_a_prompt_line_wins_over_the_flags(files):
    line = parse_line(f"a dog --i {files['other']}", where="prompts.txt:3")
    found = asked("i2v-14B", line=line, image_path=files["start"])
    assert found["image_path"].name == "other.png"
    with pytest.raises(OptionError, match=r"^prompts.txt:3: --control_path means nothing"):
        asked("i2v-14B", line=parse_line(f"x --cn {files['clip']}", where="prompts.txt:3"), image_path=files["start"])
