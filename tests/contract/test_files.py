"""Files and folders are whole or not there, whatever ends the process that writes them."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from engine.contract import files
from engine.contract.errors import DataError, DiskError
from engine.contract.files import clean_leftovers, previous_name, whole_file, whole_folder, write_bytes, write_text

from ..faults.kit import LEFTOVERS, full, kill_at, needs_kill, small_disk

KILLED_FILE = """
import sys
from pathlib import Path
from engine.contract import files
from tests.faults.kit import hold

hold(sys.argv[1], "a.bin", sys.argv[3])
files.write_bytes(Path(sys.argv[2]), b"new" * 1000)
"""
KILLED_FOLDER = """
import sys
from pathlib import Path
from engine.contract import files
from tests.faults.kit import hold

hold(sys.argv[1], sys.argv[3], "renaming")
with files.whole_folder(Path(sys.argv[2]), replace=True) as temporary:
    (temporary / "one").write_bytes(b"new")
    (temporary / "two").write_bytes(b"new")
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_in_a_folder_that_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    with whole_file(path) as temporary:
        temporary.write_bytes(b"half")
        assert not path.exists() and temporary.parent == path.parent
        temporary.write_bytes(b"whole")
    assert path.read_bytes() == b"whole" and names(path.parent) == ["a.txt"]
    write_text(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode() and names(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError("wrong"), DataError("no frame"), KeyboardInterrupt()])
def test_whatever_ends_the_block_passes_and_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    write_bytes(path, b"old")
    with pytest.raises(type(error)) as caught, whole_file(path) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert caught.value is error
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "the disk is full"),
        (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), "the disk is full"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), "the disk is full"),
        (Exception("Error while serializing: I/O error: Permission denied (os error 13)"), "Permission denied"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (OSError("encoder error -2"), "encoder error"),
    ],
)
def test_what_the_disk_refuses_is_a_disk_error_in_the_words_of_any_library(
    tmp_path: Path, error: Exception, said: str
) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(DiskError, match=said) as caught, whole_file(path, advice="Buy a disk.") as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert str(path) in caught.value.message and "\n" not in caught.value.message
    assert (caught.value.hint == "Buy a disk.") is ("full" in said) and caught.value.exit_status == 4
    assert names(tmp_path) == []


def test_an_error_of_the_network_is_none_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="refused"), whole_file(tmp_path / "a.txt"):
        raise RuntimeError("Connection refused (os error 111)")


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 251 + ".txt")
    write_text(path, "x")
    assert names(tmp_path) == [path.name]


def test_durable_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full)
    write_bytes(tmp_path / "a", b"x", durable=False)
    for write in (
        lambda: write_bytes(tmp_path / "b", b"x"),
        lambda: _write_folder(tmp_path / "c"),
    ):
        with pytest.raises(DiskError, match="disk is full"):
            write()
    assert names(tmp_path) == ["a"]


def _write_folder(folder: Path, *, replace: bool = False, text: str = "x") -> None:
    with whole_folder(folder, replace=replace) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_text(text)


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    _write_folder(folder)
    assert (folder / "inner" / "file").read_text() == "x" and names(folder.parent) == ["folder"]
    with pytest.raises(DiskError, match="not empty"):
        _write_folder(folder, text="y")
    assert (folder / "inner" / "file").read_text() == "x"
    _write_folder(folder, text="y", replace=True)
    assert (folder / "inner" / "file").read_text() == "y" and names(folder.parent) == ["folder"]
    (tmp_path / "empty").mkdir()
    _write_folder(tmp_path / "empty")
    with pytest.raises(KeyError), whole_folder(folder, replace=True) as temporary:
        (temporary / "half").touch()
        raise KeyError
    assert (folder / "inner" / "file").read_text() == "y" and names(folder.parent) == ["folder"]


@needs_kill
@pytest.mark.parametrize("how", ["half", "renaming"])
def test_killed_while_writing_a_file(tmp_path: Path, how: str) -> None:
    path = tmp_path / "out" / "a.bin"
    write_bytes(path, b"old")
    kill_at(tmp_path, KILLED_FILE, path, how)
    assert path.read_bytes() == b"old" and len(list(path.parent.glob(LEFTOVERS))) == 1
    assert clean_leftovers(path.parent) == 1 and names(path.parent) == ["a.bin"]


@needs_kill
def test_killed_while_a_folder_takes_an_older_ones_place(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "state"
    for moment, old in ((".previous", folder), ("state", previous_name(folder))):
        _write_folder(folder, replace=True, text="old")
        kill_at(tmp_path, KILLED_FOLDER, folder, moment)
        assert (old / "inner" / "file").read_text() == "old"
        assert clean_leftovers(folder.parent) == 1 and names(folder.parent) == [old.name]
    _write_folder(folder, replace=True)
    assert names(folder.parent) == ["state"]


def test_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", kib=64) as small:
        write_bytes(small / "a.bin", b"old")
        with pytest.raises(DiskError, match="disk is full") as caught:
            write_bytes(small / "a.bin", bytes(200_000), advice="Buy a disk.")
        assert caught.value.hint == "Buy a disk." and (small / "a.bin").read_bytes() == b"old"
        with pytest.raises(DiskError, match="disk is full"), whole_folder(small / "folder") as temporary:
            (temporary / "large").write_bytes(bytes(200_000))
        assert names(small) == ["a.bin"]


def test_a_folder_that_may_only_be_read(tmp_path: Path) -> None:
    if not hasattr(os, "geteuid"):
        pytest.skip("needs POSIX permissions")
    if os.geteuid() == 0:
        with small_disk(tmp_path / "closed", kib=64) as closed:  # root may write anywhere else
            subprocess.run(["mount", "-o", "remount,ro", str(closed)], check=True)
            _refused(closed)
    else:
        (tmp_path / "closed").mkdir(mode=0o500)
        _refused(tmp_path / "closed")


def _refused(closed: Path) -> None:
    for write in (lambda: write_text(closed / "a", "x"), lambda: _write_folder(closed / "b")):
        with pytest.raises(DiskError, match=r"could not be written: .*(Read-only|ermission)") as caught:
            write()
        assert "permissions" in caught.value.hint
    assert clean_leftovers(closed) == 0


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="could not be written"):
        write_text(tmp_path / "file" / "a", "x")


def test_leftovers_of_killed_writers_go_and_those_of_running_ones_stay(tmp_path: Path) -> None:
    def name(process: int, tail: str, host: str = files._HOST) -> Path:
        return tmp_path / f".part-{host}-{process}-{tail}"

    stay = [
        name(os.getpid(), "0123abcd"),
        name(os.getppid(), "0123abcd"),
        name(999_999_999, "0123abcd", "00000000"),  # on another machine the number may be alive
        tmp_path / "notes.part",
        tmp_path / ".part-mine",
    ]
    go = [name(999_999_999, "0123abcd"), name(os.getpid(), "89abcdef"), name(999_999_999, "89abcdef", "00000000")]
    for path in (*stay, *go):
        path.write_bytes(b"half")
    for path in go[1:]:
        os.utime(path, (0, 0))
    folder = name(999_999_998, "0123abcd")
    folder.mkdir()
    (folder / "half").touch()
    assert clean_leftovers(tmp_path) == 4
    assert names(tmp_path) == sorted(path.name for path in stay)
    assert clean_leftovers(tmp_path / "nowhere") == 0


def test_writers_at_the_same_time_do_not_disturb_each_other(tmp_path: Path) -> None:
    path, wrong = tmp_path / "a.bin", []

    def write(sign: bytes) -> None:
        for _ in range(30):
            write_bytes(path, sign * 5000, durable=False)
            found = path.read_bytes()
            if len(found) != 5000 or len(set(found)) != 1:
                wrong.append(found)

    threads = [threading.Thread(target=write, args=(sign,)) for sign in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and names(tmp_path) == ["a.bin"]
    assert time.time() - path.stat().st_mtime < 60


@pytest.mark.skipif(os.name == "nt", reason="Windows has other words for it")
def test_a_name_that_is_too_long_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"could not be written: File name too long") as caught:
        write_text(tmp_path / ("猫" * 300), "x")
    assert caught.value.hint == "Use a shorter name."
