"""Tensors whose bytes lie in files: the right numbers, read by anybody, and nothing left behind."""

from __future__ import annotations

import errno
import gc
import io
import os
import shutil
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from engine.contract.errors import DiskError
from engine.parts import mapped_files
from engine.parts.mapped_files import MappedFile, Scratch, holder, map_file, scratch_folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSUBI_SCRATCH", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


@pytest.mark.parametrize("start", [0, 8, 3])
def test_a_tensor_is_the_bytes_of_the_file(tmp_path, start):
    values = torch.randn(5, 7).to(torch.bfloat16)
    path = tmp_path / "file"
    path.write_bytes(bytes(start) + values.view(torch.uint8).numpy().tobytes() + b"more")
    mapped = map_file(path)
    found = mapped.tensor(start, torch.bfloat16, (5, 7))
    assert torch.equal(found, values)
    assert holder(found) == (mapped, start) and holder(found[2:]) == (mapped, start + 28) and holder(values) is None
    buffer = bytearray(70)
    mapped.fill(memoryview(buffer), start)
    assert bytes(buffer) == values.view(torch.uint8).numpy().tobytes()


def test_a_file_is_mapped_once_and_let_go_of_with_its_last_tensor(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    tensor = map_file(path).tensor(0, torch.uint8, (10,))
    file = weakref.ref(map_file(path))
    gc.collect()
    assert file() is not None and holder(tensor) == (file(), 0)
    stream = file().stream
    del tensor
    gc.collect()
    assert file() is None and stream.closed


@pytest.mark.skipif(os.name != "posix", reason="Windows does not let an open file be replaced")
def test_a_file_that_is_replaced_stays_as_it_was(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"\1" * 100)
    old = map_file(path).tensor(0, torch.uint8, (100,))
    (tmp_path / "other").write_bytes(b"\2" * 100)
    (tmp_path / "other").replace(path)
    new = map_file(path).tensor(0, torch.uint8, (100,))
    assert old.eq(1).all() and new.eq(2).all() and holder(old)[0] is not holder(new)[0]


@pytest.mark.skipif(os.name != "posix", reason="Windows does not let a mapped file be cut")
def test_a_file_that_got_shorter_is_told(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(8192))
    mapped = map_file(path)
    os.truncate(path, 4096)
    with pytest.raises(EOFError, match="ended"):
        mapped.fill(memoryview(bytearray(100)), 4090)


def test_what_is_put_into_a_scratch_file_is_there_and_has_no_name(folder):
    given = [torch.randn(3, 5), torch.tensor(2.0), torch.randn(6, 4).t(), torch.ones(7, dtype=torch.float8_e4m3fn)]
    scratch = Scratch(sum(mapped_files.aligned(tensor.nbytes) for tensor in given))
    kept = [scratch.put(tensor) for tensor in given]
    for ours, theirs in zip(kept, given, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours.float(), theirs.float()) and holder(ours) is not None
    if sys.platform == "linux":
        assert not list(folder.iterdir()), "whatever ends this process, nothing is left"
    with pytest.raises(ValueError, match="more"):
        scratch.put(torch.zeros(100))
    file, held = weakref.ref(scratch._file), mapped_files.scratch_held()
    assert held >= 64 * 4
    del scratch, kept, ours
    gc.collect()
    assert mapped_files.scratch_held() < held
    assert file() is None and not list(folder.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="kills by a signal")
def test_a_killed_process_leaves_nothing(folder):
    code = """
import os, signal, torch
from engine.parts.mapped_files import Scratch
kept = Scratch(1 << 20).put(torch.ones(1 << 18))
os.kill(os.getpid(), signal.SIGKILL)
"""
    child = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    assert child.returncode == -signal.SIGKILL and folder.is_dir() and not list(folder.iterdir())


def test_too_little_room_is_one_clear_error_beforehand(folder, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(mapped_files.shutil, "disk_usage", lambda path: usage._replace(free=3 << 30))
    with pytest.raises(DiskError) as caught:
        Scratch(14 << 30)
    assert "14.0 GiB" in caught.value.message and "3.0 GiB free" in caught.value.message
    assert str(folder) in caught.value.message and "MUSUBI_SCRATCH" in caught.value.hint
    assert not list(folder.iterdir())


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="files are reserved another way here")
def test_a_disk_that_is_full_after_all(folder, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(mapped_files.os, "posix_fallocate", full)
    with pytest.raises(DiskError, match="in a scratch file in"):
        Scratch(1000)
    assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_made(folder):
    folder.write_text("in the way")
    with pytest.raises(DiskError, match="could not be written"):
        Scratch(1000)


def test_a_file_that_cannot_be_mapped_is_named_and_closed(tmp_path):
    """As those of some shared folders; here one that may only be written."""
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"0" * 64)
    stream = io.FileIO(os.open(path, os.O_WRONLY), "w")
    with pytest.raises(DiskError, match="weights.safetensors cannot be mapped") as found:
        MappedFile(stream, str(path))
    assert "--block_swap_from_disk" in found.value.hint and stream.closed


def test_where_scratch_files_go(monkeypatch, tmp_path):
    monkeypatch.setenv("MUSUBI_HOME", str(tmp_path))
    monkeypatch.delenv("MUSUBI_SCRATCH", raising=False)
    assert scratch_folder() == tmp_path / "scratch"
    monkeypatch.setenv("MUSUBI_SCRATCH", str(tmp_path / "elsewhere"))
    assert scratch_folder() == tmp_path / "elsewhere"
