"""The stages of the pipeline: they work at the same time, in bounded memory, and all end whatever happens.

Every run here goes through `caching.in_time`, which fails on a deadlock and on threads left behind.
"""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from engine.contract.errors import DiskError, Stopped
from engine.contract.events import Control
from engine.data import cache, clips, pipeline
from engine.data.clips import Clip
from engine.data.stages import ClipQueue, Run

from . import caching
from .caching import cache_names, encode_clips, latents, make_dataset, texts


def test_a_failing_encoder_ends_all_threads_and_keeps_what_is_finished(tmp_path):
    config = make_dataset(tmp_path, clips=6, frames=20, frame_extraction="chunk")
    calls = iter(range(100))

    def failing(clips_BCFHW):
        if next(calls) == 5:
            raise RuntimeError("no kernel image")
        return encode_clips(clips_BCFHW)

    with pytest.raises(RuntimeError, match="no kernel image"):
        latents(config, encode=failing, workers=3, max_clips=2)
    assert len(cache_names(config, "*.safetensors")) == len(cache_names(config, "*.json")) == 5
    assert latents(config).skipped == 5


def test_a_failing_writer_ends_all_threads_and_keeps_what_is_finished(tmp_path, monkeypatch):
    config = make_dataset(tmp_path, clips=6, frames=20, frame_extraction="chunk")
    whole, calls = cache.write_latents, iter(range(100))

    def failing(*arguments, **facts):
        if next(calls) == 4:
            raise DiskError("The disk is full.")
        whole(*arguments, **facts)

    monkeypatch.setattr(cache, "write_latents", failing)
    with pytest.raises(DiskError, match="disk is full"):
        latents(config, workers=3, max_clips=2)
    assert len(cache_names(config, "*.safetensors")) == 4


def test_a_bug_in_decoding_ends_the_run_and_is_not_taken_for_a_broken_file(tmp_path, monkeypatch):
    config = make_dataset(tmp_path)

    def buggy(windows, *, target_fps):
        raise TypeError("ours")
        yield

    monkeypatch.setattr(clips, "read", buggy)
    with pytest.raises(TypeError, match="ours"):
        latents(config)


def test_a_stop_in_the_middle_saves_what_is_encoded_and_the_next_run_goes_on(tmp_path):
    config = make_dataset(tmp_path, clips=4, frames=20, frame_extraction="chunk")
    latents(config, recache=True)
    made = config.datasets[0].cache_directory / "clip_0_00000-005_0064x0048_wan.safetensors"
    stray = made.with_name("gone_00000-005_0064x0048_wan.safetensors")
    stray.write_bytes(made.read_bytes())
    control = Control()
    calls = iter(range(100))

    def stopping(clips_BCFHW):
        if next(calls) == 3:
            control.request_stop()
        return encode_clips(clips_BCFHW)

    with pytest.raises(Stopped, match="4 of 16 clips"):
        latents(config, encode=stopping, control=control, identity="vae-2", batch_size=1)
    assert stray.exists()  # nothing is purged after a stop
    report = latents(config, identity="vae-2")
    assert (report.done, report.skipped) == (12, 4)


def test_a_stop_before_the_start_makes_nothing(tmp_path):
    config = make_dataset(tmp_path)
    control = Control()
    control.request_stop()
    with pytest.raises(Stopped):
        latents(config, control=control)
    assert cache_names(config) == []


def test_stages_run_at_the_same_time(tmp_path, monkeypatch):
    """While one window is encoded, a later one is decoded and an earlier one written; the reference waits each time."""
    config = make_dataset(tmp_path, clips=2, frames=20, frame_extraction="chunk")
    whole_read, whole_write = clips.read, cache.write_latents
    spans: dict[str, list[tuple[float, float]]] = {"read": [], "encode": [], "write": []}

    def slowly(stage):
        started = time.monotonic()
        time.sleep(0.04)
        spans[stage].append((started, time.monotonic()))

    def slow_read(windows, *, target_fps):
        for clip in whole_read(windows, target_fps=target_fps):
            slowly("read")
            yield clip

    def slow_encode(clips_BCFHW):
        slowly("encode")
        return encode_clips(clips_BCFHW)

    def slow_write(*arguments, **facts):
        slowly("write")
        whole_write(*arguments, **facts)

    monkeypatch.setattr(clips, "read", slow_read)
    monkeypatch.setattr(cache, "write_latents", slow_write)
    assert latents(config, encode=slow_encode, workers=1).done == 8
    for other in ("read", "write"):
        assert any(a[0] < b[1] and b[0] < a[1] for a in spans["encode"] for b in spans[other]), other


def test_batches_are_of_one_shape_and_at_most_the_given_size(tmp_path):
    config = make_dataset(tmp_path, clips=3, frames=20, frame_extraction="chunk", target_frames=[5, 9])
    shapes = []

    def noting(clips_BCFHW):
        shapes.append(tuple(clips_BCFHW.shape))
        return encode_clips(clips_BCFHW)

    assert latents(config, encode=noting, batch_size=4).done == 18
    assert {shape[1:] for shape in shapes} == {(3, 5, 48, 64), (3, 9, 48, 64)}
    assert sorted(shape[0] for shape in shapes if shape[2] == 5) == [4, 4, 4]
    assert sorted(shape[0] for shape in shapes if shape[2] == 9) == [2, 4]


@pytest.mark.parametrize(("max_clips", "max_bytes"), [(1, 1 << 30), (2, 1 << 30), (8, 1), (8, 3 * 5 * 48 * 64 * 2)])
def test_a_small_budget_never_deadlocks_with_large_batches(tmp_path, max_clips, max_bytes):
    config = make_dataset(tmp_path, clips=4, frames=20, frame_extraction="chunk", target_frames=[5, 9])
    report = latents(config, batch_size=16, workers=4, max_clips=max_clips, max_bytes=max_bytes)
    assert report.done == 24


def test_the_queue_holds_no_more_bytes_than_allowed(tmp_path, monkeypatch):
    config = make_dataset(tmp_path, clips=6, frames=20, frame_extraction="chunk")
    one = 5 * 48 * 64 * 3
    rooms = []
    monkeypatch.setattr(pipeline, "ClipQueue", lambda *a, **k: rooms.append(ClipQueue(*a, **k)) or rooms[-1])
    assert latents(config, workers=4, max_bytes=3 * one).done == 24
    assert one <= rooms[0].peak_bytes <= 3 * one


def test_a_decoder_waits_for_room_before_it_decodes():
    run = Run(lambda: False)
    room = ClipQueue(run, max_bytes=100)
    room.producers(1)
    assert room.reserve(60)
    waiting = threading.Thread(target=room.reserve, args=(60,))
    waiting.start()
    time.sleep(0.1)
    assert waiting.is_alive()
    room.put(Clip(window=None, frames_FHWC=np.zeros(1)), 60)
    assert room.take().nbytes == 60
    assert room.take() == "starved"
    room.release(60, clips=1)
    waiting.join(2)
    assert not waiting.is_alive()


def test_text_caching_stops_and_fails_cleanly(tmp_path):
    config = make_dataset(tmp_path, clips=4)
    control = Control()

    def stopping(captions):
        control.request_stop()
        return caching.encode_captions(captions)

    with pytest.raises(Stopped, match="1 of 4 captions"):
        texts(config, encode=stopping, control=control, batch_size=1)

    def failing(captions):
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        texts(config, encode=failing)
    assert texts(config).done == 3
