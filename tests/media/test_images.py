"""Reading of images of every kind."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from engine.contract.errors import DataError, DiskError
from engine.media import suffixes
from engine.media.images import image_size, read_alpha, read_image, write_image
from tests.clips import draw_image, number_of, picture


@pytest.mark.skipif(".jxl" in suffixes.images(), reason="there is a plugin for JPEG XL here")
def test_jpeg_xl_without_its_plugin_is_an_error_with_the_line_that_installs_it(tmp_path):
    (tmp_path / "a.jxl").write_bytes(b"\xff\x0a")
    for read in (read_image, image_size):
        with pytest.raises(DataError, match="JPEG XL") as caught:
            read(tmp_path / "a.jxl")
        assert caught.value.hint == "Install it with: python -m env_bootstrap add pillow-jxl-plugin"


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "webp", "bmp", "avif"])
def test_every_format_is_read(tmp_path, suffix):
    path = draw_image(tmp_path / f"a.{suffix}", number=300)
    assert image_size(path) == (64, 48) and number_of(read_image(path)) == 300


def test_exif_orientation_is_applied_where_the_reference_ignores_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying: turn it clockwise
    Image.fromarray(np.rot90(picture(5)).copy()).save(tmp_path / "a.png", exif=exif)
    assert image_size(tmp_path / "a.png") == (64, 48)
    assert np.array_equal(read_image(tmp_path / "a.png"), picture(5))


def test_sixteen_bits_are_scaled_where_the_reference_clips_them(tmp_path):
    ramp = np.linspace(0, 65535, 48 * 64).astype(np.uint16).reshape(48, 64)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.shape == (48, 64, 3) and np.abs(image[..., 0] - ramp / 257).max() <= 0.51


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK"])
def test_other_modes_become_rgb(tmp_path, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    Image.fromarray(picture(77)).convert(mode, dither=Image.Dither.NONE).save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}")
    assert image.shape == (48, 64, 3) and image.dtype == np.uint8 and number_of(image) == 77


def test_alpha_is_dropped_not_blended(tmp_path):
    clear = np.dstack([picture(3), np.zeros((48, 64), np.uint8)])
    Image.fromarray(clear).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), picture(3))


def test_alpha_is_read_apart_and_turned_like_the_picture(tmp_path):
    alpha = np.zeros((48, 64), np.uint8)
    alpha[:, :10] = 200
    image = Image.fromarray(np.dstack([picture(3), alpha]))
    image.save(tmp_path / "a.png")
    assert np.array_equal(read_alpha(tmp_path / "a.png"), alpha)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter, clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_alpha(tmp_path / "turned.png"), np.rot90(alpha, -1))
    assert read_alpha(draw_image(tmp_path / "b.png")) is None
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError):
        read_alpha(tmp_path / "text.png")


def test_broken_and_missing_images_are_one_line(tmp_path):
    whole = draw_image(tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("hello")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    for name in ("cut.png", "text.png", "gone.png", "float.tif"):
        with pytest.raises(DataError) as caught:
            read_image(tmp_path / name)
        assert name in caught.value.message and "\n" not in caught.value.message
    with pytest.raises(DataError):
        image_size(tmp_path / "text.png")


def test_writing_replaces_or_leaves_what_was_there(tmp_path, monkeypatch):
    path = write_image(tmp_path / "new" / "a.png", picture(1))
    assert np.array_equal(read_image(path), picture(1))

    def full(*_args: object, **_keywords: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(DiskError, match="No space left"):
        write_image(path, picture(2))
    assert np.array_equal(read_image(path), picture(1)) and [file.name for file in path.parent.iterdir()] == ["a.png"]
