"""Caching under fire: killed while writing, full disks, garbage in the folder. Nothing half-written is ever read."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from engine.contract.errors import DataError, DiskError
from engine.data import cache, fingerprints
from engine.data.batches import load_items

from ..data.caching import Heard, cache_names, latents, make_dataset, texts

ROOT = Path(__file__).resolve().parents[2]
NAME = "clip_0_00000-005_0064x0048_wan"

# A run whose rename (or whose write) takes for ever, so that it can be killed at that point.
SLOW_CHILD = """
import os, sys, time
from pathlib import Path
from engine.data import config, cache
from tests.data import caching

real_replace, real_open = os.replace, open
def slow_replace(source, target):
    if str(target).endswith(sys.argv[2]):
        Path(sys.argv[3]).touch()
        time.sleep(60)
    real_replace(source, target)
os.replace = slow_replace

if sys.argv[4] == "half":
    class Half:
        def __init__(self, file): self.file = file
        def __enter__(self): return self
        def __exit__(self, *_): self.file.close()
        def __getattr__(self, name): return getattr(self.file, name)
        def write(self, data):
            self.file.write(data[: len(data) // 2]); self.file.flush()
            Path(sys.argv[3]).touch()
            time.sleep(60)
    cache.open = lambda path, mode="r": Half(real_open(path, mode)) if mode == "wb" else real_open(path, mode)

caching.DEADLOCK_S = 100
caching.latents(config.load_config(sys.argv[1]), workers=1)
"""


def kill_during_write(tmp_path: Path, *, suffix: str, how: str) -> None:
    """Start a caching run and kill -9 it in the middle of writing the first file whose name ends so."""
    flag = tmp_path / "writing"
    arguments = [str(tmp_path / "dataset.toml"), suffix, str(flag), how]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-c", SLOW_CHILD, *arguments], cwd=tmp_path, env=environment)
    try:
        deadline = time.monotonic() + 60
        while not flag.exists():
            assert child.poll() is None and time.monotonic() < deadline, "the child ended before it wrote"
            time.sleep(0.02)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize("how", ["half", "renaming"])
def test_killed_while_writing_a_cache(tmp_path, how):
    config = make_dataset(tmp_path, clips=2)
    kill_during_write(tmp_path, suffix="_wan.safetensors", how=how)
    (leftover,) = cache_names(config)
    assert leftover.endswith(".tmp")
    assert cache.latent_files(tmp_path / "cache", "wan", video=True) == []
    report = latents(config)
    assert report.done == 2
    assert cache_names(config, "*.tmp") == cache_names(config, ".*.tmp") == []
    assert len(cache_names(config)) == 4


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_between_a_cache_and_its_fingerprint(tmp_path):
    config = make_dataset(tmp_path, clips=1)
    kill_during_write(tmp_path, suffix=".fingerprint.json", how="renaming")
    path = tmp_path / "cache" / f"{NAME}.safetensors"
    assert cache.read_header(path) and fingerprints.read(path) is None
    heard = Heard()
    assert latents(config, say=heard).done == 1
    assert any("1 without a fingerprint" in message for message in heard.logs)
    assert len(cache_names(config)) == 2


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
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


class Full:
    """A file on a disk that has no room for more than half of what is written."""

    def __init__(self, file):
        self._file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, data):
        self._file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_one_clear_error_and_leaves_nothing_half(tmp_path, monkeypatch):
    config = make_dataset(tmp_path, clips=3)
    whole, calls = open, iter(range(100))

    def opened(path, mode="r"):
        file = whole(path, mode)
        return Full(file) if mode == "wb" and next(calls) == 2 else file  # the second cache; each has a sidecar

    monkeypatch.setattr(cache, "open", opened, raising=False)
    with pytest.raises(DiskError, match="disk is full") as raised:
        latents(config)
    assert raised.value.exit_status == 4 and "cache_directory" in raised.value.hint
    assert len(cache_names(config)) == 2 and cache_names(config, ".*") == []
    monkeypatch.undo()
    assert (latents(config).skipped, len(cache_names(config))) == (1, 6)


def test_a_full_disk_while_caching_text(tmp_path, monkeypatch):
    config = make_dataset(tmp_path, clips=3)
    whole = open
    monkeypatch.setattr(
        cache,
        "open",
        lambda path, mode="r": Full(whole(path, mode)) if mode == "wb" else whole(path, mode),
        raising=False,
    )
    with pytest.raises(DiskError, match="disk is full"):
        texts(config)
    assert cache_names(config) == []


def test_a_really_full_disk(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True, text=True, check=False
    ) if hasattr(os, "geteuid") and os.geteuid() == 0 else None  # fmt: skip
    if mounted is None or mounted.returncode:
        pytest.skip("a small tmpfs cannot be mounted: " + (mounted.stderr.strip() if mounted else "needs root"))
    try:
        config = make_dataset(tmp_path, clips=1, cache_directory=str(small))

        def large(clips_BCFHW):
            return [{"latents": torch.zeros(16, 2, 60, 80)} for _ in clips_BCFHW]  # 614 kB

        with pytest.raises(DiskError, match="disk is full"):
            latents(config, encode=large)
        assert list(small.iterdir()) == []
        assert latents(config).done == 1
    finally:
        subprocess.run(["umount", str(small)], check=True)


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


def test_leftovers_of_a_running_process_stay(tmp_path):
    mine = tmp_path / f".cache-{os.getpid()}-0123abcd.tmp"
    parent = tmp_path / f".cache-{os.getppid()}-0123abcd.tmp"
    dead = tmp_path / ".cache-999999999-0123abcd.tmp"
    old = tmp_path / f".cache-{os.getpid()}-89abcdef.tmp"
    other = tmp_path / "notes.tmp"
    for path in (mine, parent, dead, old, other):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert cache.clean_leftovers(tmp_path) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in (mine, parent, other))
