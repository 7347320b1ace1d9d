"""Resizing to a bucket (the reference's numbers are checked in tests/golden/check_data.py)."""

from __future__ import annotations

import numpy as np
import pytest

from engine.media.resize import resize_to_bucket
from tests.clips import number_of, picture


@pytest.mark.parametrize("bucket", [(32, 32), (128, 96), (64, 16), (16, 48), (200, 20)])
@pytest.mark.parametrize("size", [(64, 48), (48, 64), (100, 40)])
def test_the_result_has_the_size_of_the_bucket(size, bucket):
    image = resize_to_bucket(picture(9, size), bucket)
    assert image.shape == (bucket[1], bucket[0], 3) and image.dtype == np.uint8 and image.flags["C_CONTIGUOUS"]


def test_the_middle_is_kept():
    assert number_of(resize_to_bucket(picture(1234, (160, 80)), (64, 64)), original=(160, 80)) == 1234


def test_a_fitting_picture_is_untouched():
    image = picture(1)
    assert resize_to_bucket(image, (64, 48)) is image
