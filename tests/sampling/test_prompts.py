from __future__ import annotations

import json

import pytest

from engine.contract.errors import OptionError
from engine.families.framepack.options import PROMPT_LETTERS
from engine.sampling.prompts import GENERATE, TRAIN, parse_line, read_prompts


def problem(text, **more):
    with pytest.raises(OptionError) as caught:
        parse_line(text, where="prompts.txt:7", **more)
    assert caught.value.message.startswith("prompts.txt:7: ")
    return f"{caught.value.message} {caught.value.hint}"


def test_every_letter():
    line = parse_line(
        "A cat, running. --w 832 --h 480 --f 81 --d 42 --s 20 --l 5 --fs 3 --n blurry, very dark --i a b.png "
        "--ei e.png --cn c.mp4 --ci 1.png --ci 2.png --cim m.png --of target_index=1,control_index=0;2"
    )
    assert line.prompt == "A cat, running."
    assert (line.width, line.height, line.frame_count, line.seed, line.sample_steps) == (832, 480, 81, 42, 20)
    assert (line.cfg_scale, line.discrete_flow_shift) == (5.0, 3.0)
    assert line.negative_prompt == "blurry, very dark"
    assert (line.image_path, line.end_image_path, line.control_video_path) == ("a b.png", "e.png", "c.mp4")
    assert line.control_image_path == ("1.png", "2.png") and line.control_image_mask_path == ("m.png",)
    assert line.one_frame == "target_index=1,control_index=0;2"


def test_nothing_given_is_none():
    line = parse_line("a dog")
    assert line.prompt == "a dog" and line.width is None and line.seed is None and line.control_image_path == ()


def test_g_means_cfg_when_generating_and_embedded_guidance_when_training():
    assert parse_line("x --g 6", letters=GENERATE).cfg_scale == 6.0
    train = parse_line("x --g 6 --l 4", letters=TRAIN)
    assert (train.guidance_scale, train.cfg_scale) == (6.0, 4.0)


def test_f_is_seconds_for_families_that_say_so():
    line = parse_line("x --f 2.5 --vs 3 --mct 0.24 --mck 6", letters={**GENERATE, **PROMPT_LETTERS})
    assert (line.video_seconds, line.video_sections, line.frame_count) == (2.5, 3, None)
    assert (line.magcache_threshold, line.magcache_k) == (0.24, 6)


@pytest.mark.parametrize(
    "text",
    [
        "I walk through the rain",  # the reference reads this as --i
        "N-body simulation",
        "a cat -- running",
        "two-- three --- four",
        "well--known --5 degrees",
        "0:a cat;;;1:a dog",
    ],
)
def test_the_prompt_text_is_never_an_option(text):
    assert parse_line(text).prompt == text
    assert parse_line(f"{text} --w 64").prompt == text


def test_letters_are_case_sensitive():
    assert "--w" in problem("a cat --W 832")


def test_unknown_option_names_the_line_and_the_letters():
    said = problem("a cat --zz 3")
    assert "--zz" in said and "--fs" in said


def test_equals_sign_is_explained():
    assert "--w 832" in problem("a cat --w=832")


@pytest.mark.parametrize("text", ["a cat --w", "a cat --n --w 832", "a cat --w  "])
def test_missing_value(text):
    assert "has no value" in problem(text)


@pytest.mark.parametrize(
    "text", ["x --w wide", "x --w 83.2", "x --f 1e3", "x --d -1", "x --s 0", "x --s 1001", "x --w 0"]
)
def test_bad_numbers(text):
    assert text.split()[1] in problem(text)


def test_not_a_number_is_not_a_number():
    assert "--fs" in problem("x --fs nan")


def test_given_twice():
    assert "twice" in problem("x --w 64 --w 128")
    assert "twice" in problem("x --g 3 --l 4")


def test_no_prompt_text():
    assert "no prompt" in problem("--w 64")


@pytest.mark.parametrize("value", [r"C:\my pictures\a cat.png", "C:/x/y.png", "./a b/c.png", r"\\server\share\a.png"])
def test_paths_keep_their_blanks_and_backslashes(value):
    assert parse_line(f"x --i {value} --w 64").image_path == value
    assert parse_line(f'x --i "{value}"').image_path == value


def test_text_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa cat --w 64\r\n\r\n# a comment --zz\r\n  é dog \t--h 32  \r\n".encode())
    lines = read_prompts(file)
    assert [(line.prompt, line.width, line.height) for line in lines] == [("a cat", 64, None), ("é dog", None, 32)]
    assert lines[1].where == f"{file}:4"


def test_an_error_names_the_files_own_line_number(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a\n\n# c\nb --zz 1\n")
    with pytest.raises(OptionError, match=r"prompts\.txt:4: there is no option --zz"):
        read_prompts(file)


def test_toml(tmp_path):
    file = tmp_path / "samples.toml"
    file.write_text(
        "[prompt]\nwidth = 832\ncfg_scale = 6\n"
        "[[prompt.subset]]\nprompt = 'I walk --zz'\nseed = 1\n"
        "[[prompt.subset]]\nprompt = 'b'\ncontrol_image_path = ['x.png', 'y.png']\n"
    )
    first, second = read_prompts(file, flag="--sample_prompts")
    assert (first.prompt, first.width, first.cfg_scale, first.seed) == ("I walk --zz", 832, 6.0, 1)
    assert second.control_image_path == ("x.png", "y.png") and second.seed is None


@pytest.mark.parametrize(
    "text, expected",
    [
        (
            "[prompt]\nwidth = 1\n[[prompt.subset]]\nprompt = 'a'\nwidth = 2\n",
            r"\[\[prompt.subset\]\] 1: width is also",
        ),
        ("[prompt]\nprompt = 'a'\nwdith = 64\n", "no key 'wdith'"),
        ("[prompt]\nprompt = 'a'\nwidth = '64'\n", "width takes a whole number"),
        ("[prompt]\nprompt = 'a'\nwidth = true\n", "width takes a whole number"),
        ("[prompt]\nwidth = 64\n", "there is no prompt"),
        ("prompt = 'a'\n", r"no \[prompt\]"),
        ("[prompt\n", "line 1"),
        ("[prompt.subset]\nprompt = 'a'\n", "not a list"),
    ],
)
def test_toml_mistakes_name_the_file(tmp_path, text, expected):
    file = tmp_path / "samples.toml"
    file.write_text(text)
    with pytest.raises(OptionError, match=expected) as caught:
        read_prompts(file)
    assert "samples.toml" in caught.value.message


def test_json(tmp_path):
    file = tmp_path / "samples.json"
    file.write_text(json.dumps([{"prompt": "a", "frame_count": 17}, "b --f 33", {"prompt": ""}]))
    assert [line.frame_count for line in read_prompts(file)] == [17, 33, None]


@pytest.mark.parametrize("text", ["{}", "[1]", "[{]", "[]", '["a --zz 1"]', '[{"prompt": 3}]'])
def test_json_mistakes(tmp_path, text):
    file = tmp_path / "samples.json"
    file.write_text(text)
    with pytest.raises(OptionError, match=r"samples\.json"):
        read_prompts(file)


def test_files_that_cannot_be_read(tmp_path):
    for name, content in {"empty.txt": b"# nothing\n", "latin.txt": "caf\u00e9".encode("latin-1")}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OptionError, match=name):
            read_prompts(tmp_path / name)
    with pytest.raises(OptionError, match="no prompt file"):
        read_prompts(tmp_path / "missing.txt")
    with pytest.raises(OptionError, match="cannot be read"):
        read_prompts(tmp_path)
