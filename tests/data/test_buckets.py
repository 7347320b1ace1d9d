"""Bucket sizes and the choice among them."""

from __future__ import annotations

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from engine.data import buckets

sides = st.integers(1, 4000)
resolutions = st.tuples(st.integers(16, 1600), st.integers(16, 1600))


@settings(max_examples=300, deadline=None)
@given(resolution=resolutions)
def test_bucket_sizes_fit_the_area_and_the_step(resolution):
    sizes = buckets.bucket_sizes(resolution)
    assert sizes == sorted(set(sizes)) and sizes
    for width, height in sizes:
        assert width % 16 == 0 and height % 16 == 0 and width > 0 and height > 0
        assert width * height <= resolution[0] * resolution[1]
        assert (height, width) in sizes


@settings(max_examples=300, deadline=None)
@given(size=st.tuples(sides, sides), resolution=resolutions, no_upscale=st.booleans())
def test_no_side_is_ever_zero_where_the_reference_gives_zero(size, resolution, no_upscale):
    width, height = buckets.choose_bucket(size, resolution=resolution, enable_bucket=True, no_upscale=no_upscale)
    assert width >= 16 and height >= 16 and width % 16 == 0 and height % 16 == 0
    if not no_upscale:
        assert width * height <= resolution[0] * resolution[1]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(size=st.tuples(sides, sides), resolution=resolutions)
def test_no_upscale_never_enlarges_a_picture_within_the_area(size, resolution):
    assume(size[0] * size[1] <= resolution[0] * resolution[1] and min(size) >= 16)
    width, height = buckets.choose_bucket(size, resolution=resolution, enable_bucket=True, no_upscale=True)
    assert width <= size[0] and height <= size[1]


def test_a_thin_picture_and_a_small_budget_work_where_the_reference_divides_by_zero():
    assert buckets.choose_bucket((10, 1000), resolution=(960, 544), enable_bucket=True, no_upscale=True) == (16, 992)
    assert buckets.bucket_sizes((16, 16)) == [(16, 16)]
    assert buckets.bucket_sizes((24, 20))
    width, height = buckets.fit_size((256, 256), (10, 1000))
    assert width >= 16 and height >= 16 and width * height <= 256 * 256


def test_without_buckets_the_resolution_is_used_as_it_is():
    assert buckets.choose_bucket((1, 9), resolution=(480, 360), enable_bucket=False, no_upscale=True) == (480, 360)


@settings(max_examples=200, deadline=None)
@given(size=st.tuples(sides, sides), limit=resolutions)
def test_fit_size_stays_within_the_area(size, limit):
    width, height = buckets.fit_size(limit, size)
    assert width % 16 == 0 and height % 16 == 0 and min(width, height) >= 16
    assert width * height <= max(limit[0] * limit[1], 256)
