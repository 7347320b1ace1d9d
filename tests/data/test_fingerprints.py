"""Fingerprints: what makes a cache stale, what makes it foreign, and what does neither."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.data import cache, fingerprints
from engine.data.config import Dataset
from engine.data.fingerprints import Fingerprint


@pytest.fixture
def made(tmp_path) -> tuple[Path, Fingerprint]:
    """A cache with its sidecar."""
    source = tmp_path / "clip.mp4"
    source.write_bytes(b"pictures")
    path = tmp_path / "clip_00000-005_0064x0048_wan.safetensors"
    write_cache(path)
    fingerprint = Fingerprint(
        source=(fingerprints.content_of(source),),
        window={"start": 0, "count": 5},
        settings={"bucket": (64, 48), "family": {"i2v": True}},
        model="vae-1",
        plan=fingerprints.plan_settings(Dataset()),
    )
    fingerprints.write(path, fingerprint)
    return path, fingerprint


def write_cache(path: Path, value: float = 0.0) -> None:
    cache.write_latents(
        path, {"latents": torch.full((16, 2, 6, 8), value)}, architecture="wan", width=64, height=48, frame_count=5
    )


def test_the_same_is_fresh_and_the_sidecar_gives_it_back(made):
    path, fingerprint = made
    assert fingerprints.state(path, fingerprint) == "fresh"
    found = fingerprints.read(path)
    assert found.same_tensors(fingerprint) and found.in_use
    assert found.source == fingerprint.source
    assert json.loads(cache.sidecar_path(path).read_text())["version"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"window": {"start": 4, "count": 5}},
        {"settings": {"bucket": (48, 64), "family": {"i2v": True}}},
        {"settings": {"bucket": (64, 48), "family": {"i2v": False}}},
        {"model": "vae-2"},
        {"caption": fingerprints.caption_digest("other")},
        {"source": ()},
    ],
)
def test_what_shapes_the_tensors_makes_it_stale(made, change):
    """The reference keeps its cache whatever has changed."""
    path, fingerprint = made
    assert fingerprints.state(path, replace(fingerprint, **change)) == "stale"


def test_another_plan_does_not_make_it_stale(made):
    path, fingerprint = made
    wider = fingerprints.plan_settings(Dataset(target_frames=(5, 9)))
    assert fingerprints.state(path, replace(fingerprint, plan=wider)) == "fresh"
    assert not fingerprints.in_plan(fingerprints.read(path), Dataset(target_frames=(5, 9)))
    fingerprints.adopt(path, replace(fingerprint, plan=wider))
    assert fingerprints.in_plan(fingerprints.read(path), Dataset(target_frames=(5, 9)))


def test_a_cache_without_sidecar_is_foreign_and_a_missing_one_missing(made):
    path, fingerprint = made
    cache.sidecar_path(path).unlink()
    assert fingerprints.state(path, fingerprint) == "foreign"
    assert fingerprints.read(path) is None
    path.unlink()
    assert fingerprints.state(path, fingerprint) == "missing"


def test_a_cache_that_another_tool_overwrote_is_foreign(made):
    path, fingerprint = made
    write_cache(path, 1.0)
    assert fingerprints.state(path, fingerprint) == "foreign"


def test_a_truncated_cache_is_missing(made):
    path, fingerprint = made
    path.write_bytes(path.read_bytes()[:-10])
    assert fingerprints.state(path, fingerprint) == "missing"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 2}', "\x00\x01", '{"version": 1, "cache": 3}'])
def test_a_garbage_sidecar_is_stale(made, text):
    path, fingerprint = made
    cache.sidecar_path(path).write_text(text)
    assert fingerprints.state(path, fingerprint) == "stale"
    with pytest.raises(fingerprints.Unreadable):
        fingerprints.read(path)


def test_retiring_is_remembered_until_adopted(made):
    path, fingerprint = made
    fingerprints.retire(path)
    assert not fingerprints.read(path).in_use
    assert fingerprints.state(path, fingerprint) == "fresh"
    fingerprints.adopt(path, fingerprint)
    assert fingerprints.read(path).in_use


@pytest.mark.parametrize("sidecar", ["none", "garbage"])
def test_retiring_works_without_a_readable_sidecar(made, sidecar):
    path, fingerprint = made
    if sidecar == "none":
        cache.sidecar_path(path).unlink()
    else:
        cache.sidecar_path(path).write_text("{")
    fingerprints.retire(path)
    assert not fingerprints.read(path).in_use


def test_the_sample_sees_size_start_and_end(tmp_path):
    path, big = tmp_path / "a.mp4", bytearray(3 << 20)
    samples = set()
    for position in (None, 0, (1 << 20) - 1, (2 << 20), (3 << 20) - 1):
        data = bytearray(big)
        if position is not None:
            data[position] = 1
        path.write_bytes(data)
        samples.add(fingerprints.content_of(path).sample)
    path.write_bytes(big + b"\0")
    samples.add(fingerprints.content_of(path).sample)
    assert len(samples) == 6


def test_an_untouched_source_is_not_read_again(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    known = fingerprints.content_of(path)
    assert fingerprints.content_of(path, known=known) is known
    os.utime(path, ns=(0, known.mtime_ns + 1))
    copied = fingerprints.content_of(path, known=known)
    assert copied is not known and copied.sample == known.sample  # a copy with a new time is still the same source
    path.write_bytes(b"two")
    assert fingerprints.content_of(path, known=known).sample != known.sample


def test_a_folder_of_frames_is_its_listing(tmp_path):
    folder = tmp_path / "walk"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(bytes([number]))
    before = fingerprints.content_of(folder)
    (folder / "1.png").write_bytes(b"longer")
    resized = fingerprints.content_of(folder)
    (folder / "3.png").write_bytes(b"\3")
    assert len({before.sample, resized.sample, fingerprints.content_of(folder).sample}) == 3


def test_settings_without_effect_do_not_count():
    head = fingerprints.plan_settings(Dataset(frame_extraction="head", frame_stride=3, frame_sample=4, max_frames=5))
    assert head == fingerprints.plan_settings(Dataset(frame_extraction="head"))
    slide = fingerprints.plan_settings(Dataset(frame_extraction="slide", frame_stride=3))
    assert slide != fingerprints.plan_settings(Dataset(frame_extraction="slide"))
    image = fingerprints.plan_settings(Dataset(kind="image", target_frames=(9,)))
    assert image == fingerprints.plan_settings(Dataset(kind="image"))
    assert fingerprints.plan_settings(Dataset(num_repeats=3, batch_size=2)) == fingerprints.plan_settings(Dataset())
