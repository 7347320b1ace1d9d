"""Windows and frame-rate conversion."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data import frames

lengths = st.lists(st.integers(0, 30).map(lambda n: 4 * n + 1), min_size=1, max_size=4, unique=True).map(sorted)


@settings(max_examples=300, deadline=None)
@given(
    count=st.integers(0, 400),
    mode=st.sampled_from(frames.MODES),
    target_frames=lengths,
    stride=st.integers(1, 50),
    sample=st.integers(1, 9),
    max_frames=st.integers(1, 200),
)
def test_windows_lie_inside_the_video_and_are_4n_plus_1(count, mode, target_frames, stride, sample, max_frames):
    cut = frames.windows(
        count, mode=mode, target_frames=target_frames, stride=stride, sample=sample, max_frames=max_frames
    )
    assert all(start >= 0 and start + length <= count for start, length in cut)
    assert all(length % 4 == 1 for _, length in cut)
    if mode == "full":
        assert cut == [] if count == 0 else cut[0][1] <= max_frames and len(cut) == 1
    else:
        reachable = [length for length in target_frames if length <= count]
        assert list(dict.fromkeys(length for _, length in cut)) == (reachable if count else [])
        for length in reachable:
            starts = [start for start, found in cut if found == length]
            assert starts == sorted(starts) and starts[0] == 0
    if mode == "chunk":
        for length in target_frames:
            assert len([found for _, found in cut if found == length]) == count // length
    if mode == "uniform" and sample > 1:
        assert all(len([found for _, found in cut if found == length]) == sample for _, length in cut)


def test_an_unknown_mode_is_not_taken_for_another():
    with pytest.raises(ValueError):
        frames.windows(10, mode="tail")


@settings(max_examples=200, deadline=None)
@given(fps=st.floats(5, 120), target=st.floats(5, 60), count=st.integers(2, 300))
def test_resampling_keeps_the_speed_of_an_even_video(fps, target, count):
    times_s = [index / fps for index in range(count)]
    kept = frames.kept_frames(times_s, source_fps=fps, target_fps=target)
    assert kept == sorted(kept) and kept[0] == 0 and kept[-1] < count
    for tick, index in enumerate(kept):  # within a frame of either rate of where it belongs
        assert abs(times_s[index] - tick / target) <= 1 / fps + 1 / target
    assert abs(len(kept) / target - count / fps) <= 1 / fps + 1 / target


def test_a_slower_video_repeats_frames_where_the_reference_plays_it_too_fast():
    kept = frames.kept_frames(13, source_fps=12, target_fps=16)
    assert len(kept) == 17  # one second and a tick; the reference has 13 frames, played in 0.8 s
    assert set(kept) == set(range(13))


def test_a_variable_rate_is_resampled_by_time_where_the_reference_counts():
    slow_then_fast = [index / 10 for index in range(10)] + [1 + index / 40 for index in range(41)]
    kept = frames.kept_frames(slow_then_fast, source_fps=25, target_fps=10)
    assert [slow_then_fast[index] for index in kept] == pytest.approx([tick / 10 for tick in range(21)])


def test_rounded_container_times_do_not_shift_frames():
    exact = [index / 30 for index in range(200)]
    uneven = [*exact[:100], *exact[101:]]  # one frame is missing: no constant rate
    milliseconds = [round(time, 3) for time in uneven]
    assert frames.kept_by_time(milliseconds, target_fps=15) == frames.kept_by_time(uneven, target_fps=15)


def test_a_last_tick_that_is_rounded_past_the_last_frame_shows_that_one():
    assert frames.kept_by_time([0.0, 29408 / 15360], target_fps=24) == [0, *[1] * 46]


def test_nothing_is_resampled_without_both_rates():
    assert frames.kept_frames([0, 0.1], source_fps=None, target_fps=16) is None
    assert frames.kept_frames(5, source_fps=30, target_fps=None) is None


def test_constant_rate_tolerates_rounding_but_not_a_dropped_frame():
    assert frames.constant_rate([round(index / 30, 3) for index in range(90)]) == pytest.approx(30, rel=1e-3)
    assert frames.constant_rate([index / 30 for index in range(90) if index != 40]) is None
    assert frames.constant_rate([0.0]) is None


def test_a_declared_rate_wins_over_a_wrong_container():
    times_s = [index / 25 for index in range(100)]  # says 25, is 30
    scaled, measured = frames.declared_clock(times_s, source_fps=30)
    assert measured == pytest.approx(25)
    assert scaled[-1] == pytest.approx(99 / 30)


def test_a_phone_that_drops_frames_keeps_its_own_times():
    times_s = [index / 30 for index in range(300) if index % 5]  # mean 24, nominal 30
    same, measured = frames.declared_clock(times_s, source_fps=30)
    assert measured is None and same is times_s


def test_a_rate_within_five_percent_is_no_disagreement():
    times_s = [index / 29.97 for index in range(50)]
    assert frames.declared_clock(times_s, source_fps=30)[1] is None


def test_one_frame_is_enough_for_every_rule():
    assert frames.kept_frames([0.0], source_fps=30, target_fps=16) == [0]
    assert frames.declared_clock([0.0], source_fps=30) == ([0.0], None)
    assert frames.kept_by_time([], target_fps=16) == []
