"""Sizes from area and shape, scaling, cutting, and reading of videos to start from."""

from __future__ import annotations

import numpy as np
import pytest

from engine.contract.errors import DataError
from engine.families.wan import pictures
from tests.clips import draw_image, draw_video, number_of, picture


@pytest.mark.parametrize(
    ("size", "area", "wanted"),
    [
        ((832, 480), 480 * 832, (832, 480)),
        ((1920, 1080), 480 * 832, (832, 464)),
        ((1024, 1024), 720 * 1280, (960, 960)),
        ((1080, 1920), 720 * 1280, (720, 1280)),
        ((3000, 100), 480 * 832, (3456, 112)),
        ((10, 10_000), 16 * 16, (16, 496)),
    ],
)
def test_the_area_is_the_persons_and_the_shape_the_images(size, area, wanted):
    """The official formula, except that a size that it should leave alone does not lose 16 pixels to rounding."""
    assert pictures.size_by_area(np.zeros((size[1], size[0], 3), np.uint8), area=area) == wanted


def test_an_end_image_is_scaled_by_its_height_like_the_start_image():
    """musubi-tuner compares the new height with the end image's width, and so picks the wrong method for wide ones."""
    import cv2

    wide = picture(777, (200, 40))
    found = pictures.stretched(wide, (128, 96))  # higher than before: bicubic, though narrower
    assert (found == cv2.resize(wide, (128, 96), interpolation=cv2.INTER_CUBIC)).all()
    assert (found != cv2.resize(wide, (128, 96), interpolation=cv2.INTER_AREA)).any()


def test_the_middle_is_cut_out_in_another_pictures_shape():
    wide, square = picture(1, (200, 100)), picture(2, (60, 60))
    cut = pictures.cut_to_shape(wide, square)
    assert cut.shape == (100, 100, 3) and (cut == wide[:, 50:150]).all()
    assert pictures.cut_to_shape(square, wide).shape == (30, 60, 3)
    assert pictures.cut_to_shape(wide, wide).shape == wide.shape


def test_pixels_are_from_minus_1_to_1():
    black_to_white = np.array([[[0, 255, 51]]], np.uint8)
    assert pictures.as_image(black_to_white).flatten().tolist() == pytest.approx([-1.0, 1.0, -0.6])


def test_a_clip_is_the_first_frames_of_a_video_or_of_a_folder(tmp_path):
    draw_video(tmp_path / "clip.mp4", frames=7, first_number=30)
    for number in range(6):
        draw_image(tmp_path / "frames" / f"{number:03d}.png", number=number)
    for name, first in (("clip.mp4", 30), ("frames", 0)):
        clip = pictures.read_clip(tmp_path / name, size=(64, 48), frames=5, flag="--control_path")
        assert clip.shape == (1, 3, 5, 48, 64) and clip.min() >= -1 and clip.max() <= 1
        back = ((clip[0].permute(1, 2, 3, 0) + 1) * 127.5).numpy()
        assert [number_of(frame) for frame in back] == list(range(first, first + 5))


def test_a_clip_that_is_too_short_says_what_would_fit(tmp_path):
    draw_video(tmp_path / "clip.mp4", frames=7)
    with pytest.raises(DataError, match=r"--video_path .*: 7 frames, but 9 are needed") as caught:
        pictures.read_clip(tmp_path / "clip.mp4", size=(64, 48), frames=9, flag="--video_path")
    assert "--video_length 5" in caught.value.hint
