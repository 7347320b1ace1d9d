from __future__ import annotations

import multiprocessing
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from engine.contract.errors import DataError, DiskError, OptionError, Stopped
from engine.media.writing import CODECS, read_metadata, write_images, write_png, write_video

METADATA = {"prompt": 'a "cat", é 日本', "seed": 42, "nested": {"a": [1, 2]}}


def moving(frames=6, height=48, width=64):
    y, x = np.mgrid[0:height, 0:width]
    pictures = [
        np.stack([128 + 90 * np.sin((x + 3 * t) / 17), 128 + 90 * np.cos((y + t) / 15), 60 + x + 0 * y], axis=-1)
        for t in range(frames)
    ]
    return np.stack(pictures).clip(0, 255).astype(np.uint8)


def decode(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        pictures = list(container.decode(stream))
        return stream.average_rate, pictures, np.stack([picture.to_ndarray(format="rgb24") for picture in pictures])


def psnr(a, b):
    return 10 * np.log10(255**2 / max(((a.astype(float) - b) ** 2).mean(), 1e-9))


@pytest.mark.parametrize(
    "codec, suffix",
    [
        ("libx264", ".mp4"),
        ("h264", ".mkv"),
        ("libx265", ".mp4"),
        ("vp9", ".webm"),
        ("av1", ".mp4"),
        ("prores", ".mov"),
        ("ffv1", ".mkv"),
    ],
)
def test_every_codec_gives_the_frames_back(tmp_path, codec, suffix):
    frames = moving()
    path = write_video(tmp_path / f"a{suffix}", frames, fps=16, codec=codec, metadata=METADATA)
    rate, _, found = decode(path)
    assert rate == 16 and found.shape == frames.shape
    assert psnr(found, frames) > 34
    assert read_metadata(path) == METADATA
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_ffv1_is_lossless(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (3, 31, 33, 3), dtype=np.uint8)
    _, _, found = decode(write_video(tmp_path / "a.mkv", noise, fps=16, codec="ffv1"))
    assert np.array_equal(found, noise)


def test_crf_and_bitrate_do_something(tmp_path):
    """The reference writes a fixed bitrate whatever is asked."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    sizes = [
        write_video(tmp_path / f"{index}.mp4", noise, fps=16, **settings).stat().st_size
        for index, settings in enumerate([{"crf": 5}, {"crf": 40}, {"bitrate": 20_000}, {"bitrate": 2_000_000}])
    ]
    assert sizes[0] > 2 * sizes[1] and sizes[3] > 2 * sizes[2]


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (16, 200, 90), (0, 0, 0)])
def test_colours_survive_and_are_tagged(tmp_path, colour):
    frames = np.full((3, 32, 32, 3), colour, dtype=np.uint8)
    _, pictures, found = decode(write_video(tmp_path / "a.mp4", frames, fps=24))
    assert np.abs(found.astype(int) - frames).max() <= 3
    assert (pictures[0].colorspace, pictures[0].color_range) == (1, 1)  # BT.709, limited
    assert (pictures[0].color_primaries, pictures[0].color_trc) == (1, 1)


@pytest.mark.parametrize("height, width", [(33, 48), (32, 47), (33, 47)])
def test_odd_sizes_gain_a_repeated_line(tmp_path, height, width):
    frames = moving(height=height, width=width)
    _, _, found = decode(write_video(tmp_path / "a.mp4", frames, fps=16))
    assert found.shape[1:3] == (height + height % 2, width + width % 2)
    assert psnr(found[:, :height, :width], frames) > 32
    _, _, found = decode(write_video(tmp_path / "b.mp4", frames, fps=16, pixel_format="yuv444p"))
    assert found.shape == frames.shape


@pytest.mark.parametrize(
    "fps, rate",
    [(23.976, Fraction(24000, 1001)), (29.97, Fraction(30000, 1001)), (12.5, Fraction(25, 2)), (16, Fraction(16))],
)
def test_fractional_rates(tmp_path, fps, rate):
    found, pictures, _ = decode(write_video(tmp_path / "a.mp4", moving(), fps=fps))
    assert found == rate
    assert pictures[-1].time == pytest.approx(5 / float(rate), abs=1e-3)


def test_the_index_stands_first(tmp_path):
    data = write_video(tmp_path / "a.mp4", moving(), fps=16).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_long_metadata_survives(tmp_path, suffix):
    metadata = {"workflow": "é" * 100_000}
    path = write_video(tmp_path / f"a{suffix}", moving(2), fps=16, metadata=metadata)
    assert read_metadata(path) == metadata


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations(tmp_path, suffix):
    frames = moving()
    path = write_video(tmp_path / f"a{suffix}", iter(frames), fps=10, metadata=METADATA)
    with Image.open(path) as image:
        assert image.n_frames == len(frames) and image.size == (64, 48)
        image.seek(1)
        image.load()
        assert image.info["duration"] == 100
        assert psnr(np.asarray(image.convert("RGB")), frames[1]) > (60 if suffix == ".webp" else 25)
    assert read_metadata(path) == METADATA


def test_frames_are_taken_one_by_one(tmp_path):
    alive = []

    def frames():
        for index in range(5):
            alive.append(index)
            yield moving(1)[0]

    write_video(tmp_path / "a.mp4", frames(), fps=16)
    assert alive == list(range(5))


@pytest.mark.parametrize("error", [Stopped("stop"), RuntimeError("boom"), KeyboardInterrupt()])
def test_a_break_half_way_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")

    def frames():
        yield from moving(3)
        raise error

    with pytest.raises(type(error)):
        write_video(path, frames(), fps=16)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"codec": "nonsense"}, "nonsense"),
        ({"crf": 52}, "51"),
        ({"crf": -1}, "51"),
        ({"fps": 0}, "--fps"),
        ({"fps": float("nan")}, "--fps"),
        ({"bitrate": 0}, "bitrate"),
        ({"preset": "nonsense"}, "nonsense"),
        ({"pixel_format": "nonsense"}, "yuv420p"),
        ({"codec": "prores"}, "a.mov"),
        ({"codec": "vp9", "crf": 64}, "63"),
    ],
)
def test_wrong_settings_say_what_would_be_right(tmp_path, settings, said):
    with pytest.raises(OptionError) as caught:
        write_video(tmp_path / "a.mp4", moving(2), **{"fps": 16, **settings})
    assert said in caught.value.message + caught.value.hint
    assert not list(tmp_path.iterdir())


def test_every_codec_writes_its_own_default_format():
    for name, codec in CODECS.items():
        assert codec.pixel_format in {known.name for known in av.Codec(name, "w").video_formats}


@pytest.mark.parametrize(
    "frames, said",
    [
        ([], "no frame"),
        ([np.zeros((8, 8), np.uint8)], "height"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 10, 3), np.uint8)], "frame 1"),
        ([np.zeros((8, 8, 3), np.float32)], "float32"),
    ],
)
def test_wrong_frames(tmp_path, frames, said):
    with pytest.raises(DataError, match=said):
        write_video(tmp_path / "a.mp4", frames, fps=16)
    assert not list(tmp_path.iterdir())


def _fill_the_disk(folder, queue):
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    noise = np.random.default_rng(0).integers(0, 256, (20, 128, 128, 3), dtype=np.uint8)
    outcomes = []
    for write in (
        lambda: write_video(folder / "a.mp4", noise, fps=16),
        lambda: write_video(folder / "a.mkv", noise, fps=16),
        lambda: write_video(folder / "a.gif", noise, fps=16),
        lambda: write_images(folder / "images", noise),
    ):
        try:
            write()
            outcomes.append("written")
        except DiskError:
            outcomes.append("disk error")
    queue.put(outcomes)


def test_a_full_disk_is_a_disk_error_and_leaves_nothing(tmp_path):
    pytest.importorskip("resource")
    from tests.media.test_writing import _fill_the_disk as work  # by the name that the child finds it under

    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=work, args=(tmp_path, queue))
    child.start()
    assert queue.get(timeout=60) == ["disk error"] * 4
    child.join(10)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError):
        write_video(tmp_path / "file" / "a.mp4", moving(2), fps=16)


def test_images(tmp_path):
    frames = moving(3)
    paths = write_images(tmp_path / "20250131-235959-123_42", frames, metadata=METADATA)
    assert [path.name for path in paths] == [f"20250131-235959-123_42_{index:03d}.png" for index in range(3)]
    for path, frame in zip(paths, frames, strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), frame)
        assert read_metadata(path) == METADATA


def test_images_all_or_none(tmp_path):
    def frames():
        yield from moving(2)
        raise Stopped("stop")

    with pytest.raises(Stopped):
        write_images(tmp_path / "images", frames())
    assert not list(tmp_path.iterdir())
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "kept.txt").write_text("x")
    with pytest.raises(DataError, match="already holds"):
        write_images(tmp_path / "images", moving(2))
    assert (tmp_path / "images" / "kept.txt").exists()


def test_png(tmp_path):
    path = write_png(tmp_path / "a.png", moving(1)[0], metadata=METADATA)
    assert read_metadata(path) == METADATA


def test_metadata_of_foreign_and_broken_files(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    assert read_metadata(tmp_path / "plain.png") == {}
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    with pytest.raises(DataError, match="cannot be read"):
        read_metadata(tmp_path / "broken.mp4")
