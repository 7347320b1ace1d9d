"""Probing and reading of videos: every frame by its number, in many containers, and files that are broken."""

from __future__ import annotations

import os
import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from engine.contract.errors import DataError
from engine.media.video import probe, read_frames
from tests.clips import draw_image, draw_video, number_of, picture

CONTAINERS = {
    "mp4": "libx264", "mov": "libx264", "mkv": "libx264", "avi": "libx264", "flv": "flv", "mpg": "mpeg2video",
    "wmv": "wmv2", "webm": "libvpx-vp9",
}  # fmt: skip


def test_a_video_is_probed_as_it_is(tmp_path):
    info = probe(draw_video(tmp_path / "a.mp4", frames=40, fps=24, size=(96, 64), keyframe_every=10))
    assert (info.size, info.frames, info.rotation) == ((96, 64), 40, 0)
    assert info.fps == pytest.approx(24) and info.times_s == pytest.approx(np.arange(40) / 24)
    assert info.keyframes.tolist() == [0, 10, 20, 30]


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_every_container_gives_every_frame_in_order(tmp_path, suffix):
    path = draw_video(tmp_path / f"a.{suffix}", frames=45, fps=25, codec=CONTAINERS[suffix])
    info = probe(path)
    assert info.frames == 45 and info.fps == pytest.approx(25, rel=0.01)
    assert [number_of(image) for image in read_frames(path, info=info)] == list(range(45))
    for wanted in ([40], [0, 44], [1, 2, 30, 31, 44]):
        assert [number_of(image) for image in read_frames(path, indices=wanted, info=info)] == wanted


def test_hidden_frames_of_vp8_are_not_counted(tmp_path):
    path = draw_video(tmp_path / "a.webm", frames=60, codec="libvpx")
    assert probe(path).frames == len(list(read_frames(path))) == 60


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_metadata_is_applied(tmp_path, rotation):
    path = draw_video(tmp_path / "a.mp4", frames=2, rotation=rotation, first_number=9)
    info = probe(path)
    assert info.size == ((64, 48) if rotation == 180 else (48, 64))
    image = next(read_frames(path))
    assert image.shape == (info.height, info.width, 3)
    assert number_of(np.rot90(image, -rotation // 90)) == 9  # undone: the stored picture


def test_times_of_a_variable_rate(tmp_path):
    times_s = [0, 0.05, 0.1, 0.3, 0.35, 0.9, 1.0]
    info = probe(draw_video(tmp_path / "a.mp4", times_s=times_s))
    assert info.times_s == pytest.approx(times_s, abs=1e-4) and info.fps == pytest.approx(6)


def test_pictures_that_lost_their_reference_in_a_cut_are_not_counted(tmp_path):
    """HEVC with open groups, cut without re-encoding: pictures shown before the first keyframe cannot be decoded."""
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    with av.open(str(whole), "w") as container:
        stream = container.add_stream("libx265", rate=24)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        settings = "open-gop=1:keyint=20:min-keyint=20:bframes=3:scenecut=0:pools=1:log-level=none"
        stream.options = {"x265-params": settings, "preset": "ultrafast"}
        for number in range(50):
            frame = av.VideoFrame.from_ndarray(picture(number, (128, 96)), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(source.streams.video[0]) if packet.size]
        second_keyframe = [index for index, packet in enumerate(packets) if packet.is_keyframe][1]
        for packet in packets[second_keyframe:]:
            packet.stream = stream
            target.mux(packet)
    assert len(packets) - second_keyframe > 30
    assert [number_of(image) for image in read_frames(cut)] == list(range(20, 50))


def test_no_indices_no_frames(tmp_path):
    assert list(read_frames(draw_video(tmp_path / "a.mp4", frames=3), indices=[])) == []


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        list(read_frames(path))
    assert caught.value.message.startswith(f"{path}: ") and "\n" not in caught.value.message and caught.value.hint
    return caught.value.message


def test_a_truncated_file_says_how_many_frames_can_be_read(tmp_path):
    whole = draw_video(tmp_path / "whole.mp4", frames=100, faststart=True).read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole[: len(whole) // 2])
    message = refusal(cut)
    count = int(message.split("incomplete: ")[1].split()[0])
    assert 10 < count < 90 and f"{count} of its 100 frames can be read" in message


def test_a_truncated_matroska_file_says_where_it_ends(tmp_path):
    whole = draw_video(tmp_path / "whole.mkv", frames=100).read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole[: len(whole) // 2])
    assert "of 6.2 s, with" in refusal(cut) or "of 6.3 s, with" in refusal(cut)


def test_an_unfinished_download_is_no_video(tmp_path):
    whole = draw_video(tmp_path / "whole.mp4", frames=50).read_bytes()  # its index stands at the end
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole[: len(whole) // 2])
    assert "not a video that can be read" in refusal(cut)


def test_damage_in_the_middle_stops_the_reading_with_a_count(tmp_path):
    path = draw_video(tmp_path / "a.mp4", frames=100, faststart=True)
    data = bytearray(path.read_bytes())
    start = data.find(b"mdat") + 3000
    data[start : start + 3000] = random.Random(0).randbytes(3000)
    path.write_bytes(bytes(data))
    message = refusal(path)
    assert "the video is damaged" in message and "100" in message
    assert number_of(next(read_frames(path, indices=[0]))) == 0  # what comes before the damage can be used


@pytest.mark.parametrize("content", [b"", b"hello\n" * 200, bytes(5000), random.Random(1).randbytes(5000)])
def test_what_is_no_video_is_refused(tmp_path, content):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    assert "not a video" in refusal(path)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_an_image_named_mp4_is_refused(tmp_path, suffix):
    draw_image(tmp_path / f"a.{suffix}").rename(tmp_path / "a.mp4")
    assert "not a video" in refusal(tmp_path / "a.mp4")


def test_a_playlist_named_mp4_opens_nothing(tmp_path):
    draw_video(tmp_path / "secret.mp4", frames=3)
    for text in (
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nsecret.mp4\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile secret.mp4\n",
    ):
        path = tmp_path / "list.mp4"
        path.write_text(text)
        assert "not a video" in refusal(path)


def test_missing_files_and_folders(tmp_path):
    assert "no such video" in refusal(tmp_path / "gone.mp4")
    assert "not a video" in refusal(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="a colon cannot be part of a name there")
def test_a_name_that_looks_like_a_protocol_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw_video(tmp_path / "plain.mp4", frames=3).rename(tmp_path / "http:clip.mp4")
    assert probe("http:clip.mp4").frames == 3
