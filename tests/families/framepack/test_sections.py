"""Section arithmetic: the tables of the reference, and the faults of the reference that are not repeated."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.contract.errors import DataError, OptionError
from engine.families.framepack import model, sections
from engine.families.framepack.sections import (
    Layout,
    Section,
    choose,
    f1_layout,
    latent_paddings,
    one_frame_layout,
    parse_one_frame,
    parse_paddings,
    parse_sections,
    plain_layout,
    plan,
)


def run(first: int, count: int) -> tuple[int, ...]:
    return tuple(range(first, first + count))


def test_sections_of_a_clip():
    assert [sections.sections_in(frames) for frames in (10, 18, 19, 28, 37)] == [1, 1, 2, 3, 4]
    assert [sections.frames_used(frames) for frames in (10, 18, 19, 30)] == [10, 10, 19, 28]
    assert sections.sections_in(9, window=4) == 2
    with pytest.raises(DataError, match=r"clip.mp4 has 33 frames \(9 latent frames\).* needs 37") as caught:
        sections.sections_in(9, source="clip.mp4")
    assert "37 frames" in caught.value.hint


def test_sections_of_a_length():
    """5 s of 30 frames are 150; a section brings 36."""
    lengths = {0.1: 1, 1.0: 1, 2.0: 2, 5.0: 4, 10.0: 8, 60.0: 50}
    assert {seconds: sections.sections_wanted(seconds=seconds) for seconds in lengths} == lengths
    assert sections.sections_wanted(seconds=1.0, window=4) == 2
    assert sections.section_pixel_frames() == 33
    with pytest.raises(OptionError, match="--video_sections 0"):
        sections.sections_wanted(seconds=5, sections=0)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_video_sections_wins_over_seconds(count):
    """musubi-tuner derives the number anew from --video_seconds when it decodes, and cuts the video short."""
    assert sections.sections_wanted(seconds=5.0, sections=count) == count


def test_default_paddings():
    wanted = {1: [0], 2: [1, 0], 3: [2, 1, 0], 4: [3, 2, 1, 0], 5: [3, 2, 2, 1, 0], 7: [3, 2, 2, 2, 2, 1, 0]}
    assert {count: latent_paddings(count) for count in wanted} == wanted
    assert len(latent_paddings(50)) == 50


@pytest.mark.parametrize("count", [3, 4, 6])
def test_given_paddings_replace_from_the_front(count):
    """With four sections or fewer, giving less paddings than sections crashes musubi-tuner."""
    default = latent_paddings(count)
    assert latent_paddings(count, override=[5]) == [5, *default[1:]]
    assert latent_paddings(count, override=[5, 4]) == [5, 4, *default[2:]]
    assert latent_paddings(count, override=range(20, 40)) == list(range(20, 20 + count))
    assert parse_paddings("3, 2,1 ,0") == (3, 2, 1, 0)
    for text in ("", "3,,1", "3,-1", "a"):
        with pytest.raises(OptionError, match="--latent_paddings"):
            parse_paddings(text)


def test_the_first_release_goes_backwards_and_f1_forwards():
    assert plan(3) == [Section(2, -1, 2), Section(1, -2, 1), Section(0, -3, 0)]
    assert plan(3, paddings=[7]) == [Section(2, -1, 7), Section(1, -2, 1), Section(0, -3, 0)]
    assert plan(3, f1=True) == [Section(0, -3, 0), Section(1, -2, 0), Section(2, -1, 0)]
    assert [one.starts_video for one in plan(2)] == [False, True]
    assert [one.first_frame() for one in plan(3)] == [19, 10, 1]


@given(st.integers(1, 60), st.booleans())
def test_every_frame_is_made_once(count, f1):
    places = [place for one in plan(count, f1=f1) for place in run(one.first_frame(), sections.WINDOW)]
    assert sorted(places) == list(range(1, 1 + count * sections.WINDOW))


def test_places_of_the_first_release():
    assert plain_layout(0) == Layout(run(1, 9), (0, 10), (11, 12), run(13, 16))
    assert plain_layout(3) == Layout(run(28, 9), (0, 37), (38, 39), run(40, 16))
    assert plain_layout(2, window=3) == Layout(run(7, 3), (0, 10), (11, 12), run(13, 16))


def test_places_of_f1():
    assert f1_layout() == Layout(run(20, 9), (0, 19), (17, 18), run(1, 16))
    assert f1_layout(window=3).target == (20, 21, 22)


def test_places_of_one_frame():
    default = one_frame_layout(9, [0])
    assert default == Layout((9,), (0, 10), (11, 12), run(13, 16))
    dressing_up = one_frame_layout(1, [0, 10], no_2x=True, no_4x=True, no_post=True)
    assert dressing_up == Layout((1,), (0, 10), (), ())
    assert one_frame_layout(5, [0, 1], window=4, no_2x=True) == Layout((5,), (0, 1, 5), (), run(8, 16))


def test_history_is_cut_at_the_newest_end():
    history = torch.arange(30)
    assert [history[part].tolist() for part in sections.PLAIN_HISTORY] == [[0], [1, 2], list(range(3, 19))]
    assert [history[part].tolist() for part in sections.F1_HISTORY] == [[29], [27, 28], list(range(11, 27))]
    assert sections.HISTORY_FRAMES == 19


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (None, {}),
        ("", {}),
        ("a cat", {0: "a cat"}),
        ("0:a cat", {0: "0:a cat"}),
        ("0:a;;;1:b", {0: "a", 1: "b"}),
        (" 0 : a ;;; -1 : b ", {0: "a", -1: "b"}),
        ("0-2:a;;;3:b", {0: "a", 1: "a", 2: "a", 3: "b"}),
        ("0-2:a;;;1:b", {0: "a", 1: "b", 2: "a"}),
        ("-3--1:a;;;0:b", {-3: "a", -2: "a", -1: "a", 0: "b"}),
        ("-1-1:a;;;0:b", {-1: "a", 0: "b", 1: "a"}),
        ("a;;;2:b", {0: "a", 2: "b"}),
        ("1:a;;;2:b", {0: "a", 1: "a", 2: "b"}),
        ("-2:a;;;-1:b", {-2: "a", -1: "b", 0: "a"}),
        ("-1:a;;;3:b", {-1: "a", 3: "b", 0: "b"}),
        (";;;", {}),
        ("0:two\nlines;;;1:b: with a colon", {0: "two\nlines", 1: "b: with a colon"}),
    ],
)
def test_sections_of_a_text(text, wanted):
    assert parse_sections(text) == wanted


def test_drive_letters_survive():
    r"""musubi-tuner takes the C of C:\a.png for an index that is not valid, and drops it."""
    assert parse_sections(r"C:\a.png;;;1:D:\b.png") == {0: r"C:\a.png", 1: r"D:\b.png"}
    assert parse_sections(r"0:C:\a.png;;;-1:D:/b.png") == {0: r"C:\a.png", -1: "D:/b.png"}


def test_a_colon_in_a_prompt_loses_nothing():
    assert parse_sections("A cat: asleep;;;1:awake") == {0: "A cat: asleep", 1: "awake"}


def test_a_separator_at_the_end_does_not_blank_section_zero():
    assert parse_sections("0:a;;;1:b;;;") == {0: "a", 1: "b"}


def test_a_range_that_runs_backwards_is_an_error():
    with pytest.raises(OptionError, match="--image_path: the range 2-0 runs backwards") as caught:
        parse_sections("2-0:a;;;b", role="--image_path")
    assert "0-2:" in caught.value.hint


def test_the_place_from_the_end_is_asked_first():
    table = parse_sections("0:start;;;1:second;;;-1:end")
    assert [choose(table, one) for one in plan(3, f1=True)] == ["start", "second", "end"]
    assert [choose(table, one) for one in plan(2)] == ["end", "start"]
    assert [choose(table, one) for one in plan(4)] == ["end", "start", "second", "start"]


@given(st.text(alphabet="0123-:;ab C\\\n", max_size=30))
def test_any_text_is_read_or_refused_with_a_sentence(text):
    try:
        found = parse_sections(text)
    except OptionError:
        return
    assert not found or 0 in found


def test_one_frame_options():
    assert parse_one_frame("default") == sections.OneFrame(9)
    assert parse_one_frame("default", window=5).target_index == 5
    read = parse_one_frame("no_2x, no_4x,no_post,target_index=1, control_index=0;10")
    assert read == sections.OneFrame(1, (0, 10), no_2x=True, no_4x=True, no_post=True)
    assert read.layout(2) == one_frame_layout(1, [0, 10], no_2x=True, no_4x=True, no_post=True)
    assert parse_one_frame("default").layout(2).clean == (0, 0, 10)
    assert parse_one_frame("control_index=1").layout(2, window=4).clean == (1, 0, 5)
    for text in ("no_8x", "target_index=x", "target_index=1;2", "control_index=", "no_2x=1"):
        with pytest.raises(OptionError, match="--one_frame_inference"):
            parse_one_frame(text)
    with pytest.raises(OptionError, match="names 2 places, but there are 1 control images"):
        read.layout(1)


@pytest.mark.parametrize("window", [2, 4, 9])
@pytest.mark.parametrize("padding", [0, 1, 3])
def test_places_tell_of_which_release_a_cache_is(padding, window):
    def values(layout: Layout) -> dict[str, torch.Tensor]:
        return {"latent_indices": torch.tensor(layout.target), "clean_latent_indices": torch.tensor(layout.clean)}

    first, f1 = values(plain_layout(padding, window=window)), values(f1_layout(window=window))
    assert model.check_values(first, task="i2v") == model.check_values(f1, task="f1") == ""
    assert "made without --f1" in model.check_values(first, task="f1")
    assert "made with --f1" in model.check_values(f1, task="i2v")
    assert model.check_values({}, task="f1") == ""  # check_cache has something to say then
