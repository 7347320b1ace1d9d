"""Caching under fire: killed while writing, full disks, garbage in the folder. Nothing half-written is ever read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from engine.contract.errors import DataError, DiskError
from engine.data import cache, fingerprints
from engine.data.batches import load_items
from tests.faults.kit import LEFTOVERS, kill_at, needs_kill, no_room_after, small_disk

from ..data.caching import Heard, cache_names, latents, make_dataset, texts

NAME = "clip_0_00000-005_0064x0048_wan"

SLOW_CHILD = """
import sys
from engine.data import config
from tests.data import caching
from tests.faults.kit import hold

hold(sys.argv[1], sys.argv[3], sys.argv[4])
caching.DEADLOCK_S = 100
caching.latents(config.load_config(sys.argv[2]), workers=1)
"""


def kill_during_write(tmp_path: Path, *, suffix: str, how: str) -> None:
    """Start a caching run and kill -9 it in the middle of writing the first file whose name ends so."""
    kill_at(tmp_path, SLOW_CHILD, tmp_path / "dataset.toml", suffix, how)


@needs_kill
@pytest.mark.parametrize("how", ["half", "renaming"])
def test_killed_while_writing_a_cache(tmp_path, how):
    config = make_dataset(tmp_path, clips=2)
    kill_during_write(tmp_path, suffix="_wan.safetensors", how=how)
    (leftover,) = cache_names(config)
    assert leftover.startswith(".part-")
    assert cache.latent_files(tmp_path / "cache", "wan", video=True) == []
    report = latents(config)
    assert report.done == 2
    assert cache_names(config, LEFTOVERS) == []
    assert len(cache_names(config)) == 4


@needs_kill
def test_killed_between_a_cache_and_its_fingerprint(tmp_path):
    config = make_dataset(tmp_path, clips=1)
    kill_during_write(tmp_path, suffix=".fingerprint.json", how="renaming")
    path = tmp_path / "cache" / f"{NAME}.safetensors"
    assert cache.read_header(path) and fingerprints.read(path) is None
    heard = Heard()
    assert latents(config, say=heard).done == 1
    assert any("1 without a fingerprint" in message for message in heard.logs)
    assert len(cache_names(config)) == 2


@needs_kill
def test_killed_while_replacing_a_stale_cache_leaves_the_old_one_stale(tmp_path):
    config = make_dataset(tmp_path, clips=1)
    latents(config, identity="older-vae")
    old = (tmp_path / "cache" / f"{NAME}.safetensors").read_bytes()
    kill_during_write(tmp_path, suffix="_wan.safetensors", how="renaming")
    assert (tmp_path / "cache" / f"{NAME}.safetensors").read_bytes() == old
    assert latents(config).done == 1


@pytest.mark.parametrize("keep", [0, 3, 8, 60, -1])
def test_a_truncated_cache_is_redone_and_never_trained_on(tmp_path, keep):
    config = make_dataset(tmp_path, clips=2)
    latents(config)
    texts(config)
    for name in (f"{NAME}.safetensors", "clip_1_wan_te.safetensors"):
        path = tmp_path / "cache" / name
        path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="out of date or damaged"):
        load_items(config, architecture="wan", say=Heard())
    assert (latents(config).done, texts(config).done) == (1, 1)
    assert len(load_items(config, architecture="wan", say=Heard())) == 2


def test_a_garbage_sidecar_means_stale(tmp_path):
    config = make_dataset(tmp_path, clips=2)
    latents(config)
    texts(config)
    (tmp_path / "cache" / f"{NAME}.fingerprint.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(DataError, match="fingerprint cannot be read"):
        load_items(config, architecture="wan", say=Heard())
    report = latents(config)
    assert (report.done, report.skipped) == (1, 1)
    assert len(load_items(config, architecture="wan", say=Heard())) == 2


def test_a_full_disk_is_one_clear_error_and_leaves_nothing_half(tmp_path, monkeypatch):
    config = make_dataset(tmp_path, clips=3)
    no_room_after(monkeypatch, 2)  # the second cache; each has a sidecar
    with pytest.raises(DiskError, match="disk is full") as raised:
        latents(config)
    assert raised.value.exit_status == 4 and "cache_directory" in raised.value.hint
    assert len(cache_names(config)) == 2 and cache_names(config, ".*") == []
    monkeypatch.undo()
    assert (latents(config).skipped, len(cache_names(config))) == (1, 6)


def test_a_full_disk_while_caching_text(tmp_path, monkeypatch):
    config = make_dataset(tmp_path, clips=3)
    no_room_after(monkeypatch, 0)
    with pytest.raises(DiskError, match="disk is full"):
        texts(config)
    assert cache_names(config) == []


def test_a_really_full_disk(tmp_path):
    def large(clips_BCFHW):
        return [{"latents": torch.zeros(16, 2, 60, 80)} for _ in clips_BCFHW]  # 614 kB

    with small_disk(tmp_path / "small", kib=64) as small:
        config = make_dataset(tmp_path, clips=1, cache_directory=str(small))
        with pytest.raises(DiskError, match="disk is full"):
            latents(config, encode=large)
        assert list(small.iterdir()) == []
        assert latents(config).done == 1


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path):
    config = make_dataset(tmp_path, clips=1)
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(DiskError, match="could not be written"):
        latents(config)


def test_a_cache_folder_that_is_a_file(tmp_path):
    config = make_dataset(tmp_path, clips=1)
    (tmp_path / "cache").write_text("not a folder")
    with pytest.raises((DiskError, DataError), match="cache"):
        latents(config)
