"""Planning and reading of clips, on real files whose frames carry their numbers."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.contract.errors import DataError
from engine.data import clips
from engine.data.config import Dataset
from engine.data.items import Source
from engine.media import video
from tests.clips import draw_image, draw_video, number_of, picture

SIZE = (64, 48)


def source(path: Path, *, media: str = "video", controls: tuple[Path, ...] = (), **values: object) -> Source:
    settings = {"kind": "image" if media == "image" else "video", "resolution": SIZE, "enable_bucket": False, **values}
    return Source(dataset=Dataset(**settings), path=path, caption="", media=media, controls=controls)


def numbers(frames_FHWC: np.ndarray, original: tuple[int, int] = SIZE) -> list[int]:
    return [number_of(frame, original=original) for frame in frames_FHWC]


def all_of(item: Source, target_fps: float | None = 16) -> dict[tuple[int, int], list[int]]:
    """Every clip of a source: (start, count) and the numbers of its frames."""
    found = {}
    windows = clips.plan(item, target_fps=target_fps)
    for clip in clips.read(windows, target_fps=target_fps):
        assert clip.frames_FHWC.dtype == np.uint8
        assert clip.frames_FHWC.shape == (clip.window.count, clip.window.bucket[1], clip.window.bucket[0], 3)
        found[clip.window.start, clip.window.count] = numbers(clip.frames_FHWC, clip.window.original)
    assert len(found) == len(windows)
    return found


def expected(*spans: tuple[int, int]) -> dict[tuple[int, int], list[int]]:
    return {(start, count): list(range(start, start + count)) for start, count in spans}


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return draw_video(tmp_path_factory.mktemp("clips") / "a.mp4", frames=50)


def test_each_mode_gives_exactly_its_frames(clip):
    lengths = {"target_frames": (5, 21)}
    assert all_of(source(clip, **lengths)) == expected((0, 5), (0, 21))
    assert all_of(source(clip, frame_extraction="chunk", **lengths)) == expected(
        *((start, 5) for start in range(0, 50, 5)), (0, 21), (21, 21)
    )
    assert all_of(source(clip, frame_extraction="slide", frame_stride=20, **lengths)) == expected(
        (0, 5), (20, 5), (40, 5), (0, 21), (20, 21)
    )
    assert all_of(source(clip, frame_extraction="uniform", frame_sample=3, **lengths)) == expected(
        (0, 5), (22, 5), (45, 5), (0, 21), (14, 21), (29, 21)
    )
    assert all_of(source(clip, frame_extraction="full", max_frames=40)) == expected((0, 37))


def test_the_same_window_is_not_made_twice(tmp_path):
    path = draw_video(tmp_path / "a.mp4", frames=6)
    item = source(path, frame_extraction="uniform", frame_sample=4, target_frames=(5,))
    assert all_of(item) == expected((0, 5), (1, 5))


def test_the_last_frames_alone_are_read_from_a_keyframe_nearby(clip, monkeypatch):
    item = source(clip, frame_extraction="slide", frame_stride=45, target_frames=(5,))
    window = clips.plan(item, target_fps=16)[-1]
    decoded = []
    upright = video._upright
    monkeypatch.setattr(video, "_upright", lambda frame, rotation: decoded.append(1) or upright(frame, rotation))
    entered = []
    decode = video._decode
    monkeypatch.setattr(video, "_decode", lambda run, info, start: entered.append(start) or decode(run, info, start))
    (found,) = clips.read([window], target_fps=16)
    assert numbers(found.frames_FHWC) == [45, 46, 47, 48, 49]
    assert len(decoded) == 5 and entered == [36]


def test_one_window_is_read_without_its_timeline(clip):
    window = clips.plan(source(clip, target_frames=(5,)), target_fps=16)[0]
    bare = clips.Window(source=window.source, start=7, count=5, bucket=window.bucket, original=window.original)
    (found,) = clips.read([bare], target_fps=16)
    assert numbers(found.frames_FHWC) == [7, 8, 9, 10, 11]


def test_frames_are_brought_to_the_bucket(tmp_path):
    path = draw_video(tmp_path / "wide.mp4", frames=5, size=(160, 64))
    item = source(path, resolution=(64, 64), enable_bucket=True, target_frames=(5,))
    (window,) = clips.plan(item, target_fps=16)
    assert window.original == (160, 64) and window.bucket == (80, 48)
    assert all_of(item) == expected((0, 5))


def test_a_declared_rate_drops_frames_of_a_faster_video(tmp_path):
    path = draw_video(tmp_path / "a.mp4", frames=60, fps=32)
    item = source(path, source_fps=32.0, target_frames=(29,))
    assert all_of(item)[0, 29] == list(range(0, 58, 2))


def test_a_slower_video_repeats_frames(tmp_path):
    path = draw_video(tmp_path / "a.mp4", frames=9, fps=8)
    assert all_of(source(path, source_fps=8.0, target_frames=(17,)))[0, 17] == [
        0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8,
    ]  # fmt: skip


def test_a_variable_rate_comes_out_at_its_real_speed(tmp_path):
    times_s = [index / 8 for index in range(9)] + [1 + index / 32 for index in range(1, 33)]
    path = draw_video(tmp_path / "a.mp4", times_s=times_s)
    (shown,) = all_of(source(path, source_fps=20.0, frame_extraction="full")).values()
    assert [times_s[number] for number in shown[::2]] == pytest.approx([tick / 8 for tick in range(17)])


def test_a_wrong_container_rate_is_overruled_with_a_warning(tmp_path):
    path = draw_video(tmp_path / "a.mp4", frames=33, fps=16)
    said = []
    windows = clips.plan(source(path, source_fps=32.0, frame_extraction="full"), target_fps=16, say=said.append)
    assert len(said) == 1 and "16 frames a second" in said[0].message and "source_fps = 32" in said[0].message
    (found,) = clips.read(windows, target_fps=16)
    assert numbers(found.frames_FHWC) == list(range(0, 33, 2))


def test_a_folder_of_frames_is_a_video(tmp_path):
    for number in range(9):
        draw_image(tmp_path / "f" / f"{number:02d}.png", number=number)
    assert all_of(source(tmp_path / "f", media="frames", target_frames=(5,), frame_extraction="chunk")) == expected(
        (0, 5)
    )
    assert all_of(source(tmp_path / "f", media="frames", target_frames=(5,), source_fps=32.0))[0, 5] == [0, 2, 4, 6, 8]


def test_an_image_is_one_frame(tmp_path):
    path = draw_image(tmp_path / "a.png", number=77, size=(128, 96))
    item = source(path, media="image")
    (window,) = clips.plan(item, target_fps=16)
    assert (window.start, window.count, window.bucket, window.original) == (0, 1, SIZE, (128, 96))
    assert all_of(item) == {(0, 1): [77]}


def test_a_rotated_video_is_turned_before_its_bucket_is_chosen(tmp_path):
    path = draw_video(tmp_path / "a.mp4", frames=1, rotation=-90, size=(96, 48))
    (window,) = clips.plan(source(path, resolution=(64, 64), enable_bucket=True), target_fps=16)
    assert window.original == (48, 96) and window.bucket[0] < window.bucket[1]


def test_the_configured_bucket_flags_count_where_the_reference_ignores_them_in_caching(tmp_path):
    path = draw_video(tmp_path / "a.mp4", frames=1, size=(64, 48))
    small = {"resolution": (512, 512), "bucket_no_upscale": True}
    (window,) = clips.plan(source(path, enable_bucket=True, **small), target_fps=16)
    assert window.bucket == (64, 48)
    (window,) = clips.plan(source(path, enable_bucket=False, **small), target_fps=16)
    assert window.bucket == (512, 512)


def test_a_short_control_repeats_its_last_frame_and_a_long_one_is_cropped(tmp_path):
    path = draw_video(tmp_path / "a.mp4", frames=13)
    short = draw_video(tmp_path / "c" / "short.mp4", frames=7, first_number=100)
    for number in range(20):
        draw_image(tmp_path / "long" / f"{number:02d}.png", number=200 + number, size=(128, 96))
    item = source(path, controls=(short, tmp_path / "long"), frame_extraction="chunk", target_frames=(5, 13))
    found = {}
    for clip in clips.read(clips.plan(item, target_fps=16), target_fps=16):
        assert [control.shape for control in clip.controls_FHWC] == [clip.frames_FHWC.shape] * 2
        found[clip.window.start, clip.window.count] = [numbers(control) for control in clip.controls_FHWC]
    assert found[5, 5] == [[105, 106, 106, 106, 106], [205, 206, 207, 208, 209]]
    assert found[0, 13] == [[*range(100, 107), *[106] * 6], list(range(200, 213))]


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, (64, 48)),
        ({"no_resize_control": True}, (96, 80)),
        ({"control_resolution": (64, 64)}, (64, 64)),
        ({"no_resize_control": True, "control_resolution": (512, 512)}, (96, 80)),
        ({"no_resize_control": True, "control_resolution": (64, 64)}, (64, 64)),
    ],
)
def test_image_controls_follow_the_control_settings(tmp_path, settings, size):
    path = draw_image(tmp_path / "a.png")
    control = draw_image(tmp_path / "c.png", size=(100, 81))
    item = source(path, media="image", controls=(control,), **settings)
    (found,) = clips.read(clips.plan(item, target_fps=16), target_fps=16)
    assert found.controls_FHWC[0].shape == (1, size[1], size[0], 3)


def test_controls_of_images_bring_their_alpha_at_their_size(tmp_path):
    alpha = np.zeros((80, 100), np.uint8)
    alpha[:, 50:] = 255
    Image.fromarray(np.dstack([picture(3, (100, 80)), alpha])).save(tmp_path / "c.png")
    path, plain = draw_image(tmp_path / "a.png"), draw_image(tmp_path / "d.png")
    item = source(path, media="image", controls=(tmp_path / "c.png", plain))
    (found,) = clips.read(clips.plan(item, target_fps=16), target_fps=16)
    assert [control.shape for control in found.controls_FHWC] == [(1, 48, 64, 3)] * 2
    assert found.alphas_HW[0].shape == (48, 64) and found.alphas_HW[1] is None
    assert not found.alphas_HW[0][:, :30].any() and (found.alphas_HW[0][:, 34:] == 255).all()


def test_a_video_too_short_says_what_it_needs_where_the_reference_drops_it(tmp_path):
    path = draw_video(tmp_path / "a.mp4", frames=12)
    with pytest.raises(DataError, match=r"a\.mp4: too short: it needs at least 25 frames and has 12\."):
        clips.plan(source(path, target_frames=(25, 45)), target_fps=16)
    with pytest.raises(DataError, match="25 frames at 16 frames a second and has 6"):
        clips.plan(source(path, target_frames=(25,), source_fps=32.0), target_fps=16)


def test_a_file_that_changed_since_planning_is_refused(tmp_path):
    path = draw_video(tmp_path / "a.mp4", frames=12)
    window = clips.plan(source(path, target_frames=(9,)), target_fps=16)[0]
    draw_video(path, frames=4)
    bare = clips.Window(source=window.source, start=0, count=9, bucket=window.bucket, original=window.original)
    with pytest.raises(DataError, match="has changed"):
        list(clips.read([bare], target_fps=16))


def test_windows_of_two_sources_are_our_mistake(clip):
    first = clips.plan(source(clip), target_fps=16)
    second = clips.plan(source(clip, caption_extension=".cap"), target_fps=16)
    with pytest.raises(ValueError):
        list(clips.read(first + second, target_fps=16))
    assert list(clips.read([], target_fps=16)) == []


@pytest.mark.parametrize("mode", ["chunk", "slide"])
def test_memory_does_not_grow_with_the_length(tmp_path, mode):
    """The peak of what Python holds while reading is that of a few windows, for a clip of any length."""
    peaks = []
    for frames in (100, 600):
        path = draw_video(tmp_path / f"{frames}.mp4", frames=frames, size=(64, 64))
        item = source(path, resolution=(64, 64), frame_extraction=mode, frame_stride=10, target_frames=(5, 21))
        windows = clips.plan(item, target_fps=16)
        tracemalloc.start()
        try:
            for clip in clips.read(windows, target_fps=16):
                assert number_of(clip.frames_FHWC[-1]) == clip.window.end - 1
                del clip
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    window_bytes = 21 * 64 * 64 * 3
    assert peaks[1] < peaks[0] + window_bytes
    assert peaks[1] < 6 * window_bytes
