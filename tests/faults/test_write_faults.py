"""Whatever the engine writes: killed in the middle or out of disk, the old file stays, and the next run goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engine.contract.errors import DiskError
from engine.contract.files import clean_leftovers
from engine.demo.prepare import prepare
from tests.faults.kit import LEFTOVERS, kill_in, needs_kill, small_disk
from tests.faults.writers import FOLDERS, WRITERS, prepare_slowly, write_slowly

IN_ONE_PIECE = ("LoRA", "latent", "job.toml", "contact sheet", "image", "png", "animation")
MOMENTS = [
    *((name, "renaming") for name in WRITERS),
    *((name, "half") for name in IN_ONE_PIECE),
    *((name, "middle") for name, writer in WRITERS.items() if writer.middle),
]


def nothing() -> None:
    """The pause of a writer that nobody wants to kill."""


@needs_kill
@pytest.mark.parametrize(("name", "how"), MOMENTS, ids=lambda value: str(value).replace(" ", "_"))
def test_killed_while_writing(tmp_path: Path, name: str, how: str) -> None:
    writer = WRITERS[name]
    path = tmp_path / "out" / writer.name
    path.parent.mkdir()
    writer.write(path, 1, nothing)
    kill_in(tmp_path, write_slowly, name, path, how)
    assert writer.read(path) == 1
    assert len(list(path.parent.glob(LEFTOVERS))) == 1 and clean_leftovers(path.parent) == 1
    writer.write(path, 2, nothing)
    assert writer.read(path) == 2 and not list(path.parent.glob(".*"))


@needs_kill
@pytest.mark.parametrize("how", ["middle", "renaming"])
@pytest.mark.parametrize("name", FOLDERS)
def test_killed_while_writing_a_new_folder(tmp_path: Path, name: str, how: str) -> None:
    writer = FOLDERS[name]
    path = tmp_path / "out" / writer.name
    kill_in(tmp_path, write_slowly, name, path, how)
    assert not path.exists() and clean_leftovers(path.parent) == 1 and not list(path.parent.iterdir())
    writer.write(path, 2, nothing)
    assert writer.read(path) == 2


@pytest.mark.parametrize("name", WRITERS, ids=lambda value: value.replace(" ", "_"))
def test_no_room_left(tmp_path: Path, name: str) -> None:
    writer = WRITERS[name]
    with small_disk(tmp_path / "disk", kib=8192) as disk:
        path = disk / writer.name
        writer.write(path, 1, nothing)
        filler = fill(disk, spare=4096)
        before = sorted(disk.rglob("*"))
        with pytest.raises(DiskError, match="disk is full") as caught:
            writer.write(path, 2, nothing)
        assert caught.value.hint and "\n" not in caught.value.message and caught.value.exit_status == 4
        assert sorted(disk.rglob("*")) == before
        assert filler.stat().st_size
        filler.unlink()
        assert writer.read(path) == 1
        writer.write(path, 2, nothing)
        assert writer.read(path) == 2


@pytest.mark.parametrize(("name", "spare"), [("images", 160 << 10), ("shards", 32 << 10)])  # for a part of them
def test_no_room_left_for_a_new_folder(tmp_path: Path, name: str, spare: int) -> None:
    with small_disk(tmp_path / "disk", kib=1024) as disk:
        fill(disk, spare=spare)
        with pytest.raises(DiskError, match="disk is full"):
            FOLDERS[name].write(disk / FOLDERS[name].name, 1, nothing)
        assert [path.name for path in disk.iterdir()] == ["filler"]


def fill(disk: Path, *, spare: int) -> Path:
    """Fill a disk up to so many bytes, which are then still free."""
    free = shutil.disk_usage(disk).free - spare
    assert free > 0
    (disk / "filler").write_bytes(bytes(free))
    return disk / "filler"


@needs_kill
@pytest.mark.parametrize(
    ("family", "ending", "how"),
    [
        ("wan", "orange_down.mp4", "renaming"),
        ("wan", "pocket_wan_vae.safetensors", "renaming"),
        ("hunyuan_video", "tokenizer.json", "renaming"),
        ("wan", "dataset.toml", "half"),
    ],
)
def test_killed_while_a_demo_is_prepared(tmp_path: Path, family: str, ending: str, how: str) -> None:
    folder = tmp_path / "demo"
    kill_in(tmp_path, prepare_slowly, folder, family, ending, how)
    assert not (folder / "ready").exists() and len(list(folder.rglob(LEFTOVERS))) == 1
    prepared = prepare(folder, family)
    assert all(step.file.is_file() for step in prepared.steps) and (folder / "ready").exists()
    assert not list(folder.rglob(LEFTOVERS))


def test_a_demo_without_room_is_one_clear_error(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kib=256) as disk:
        with pytest.raises(DiskError, match="disk is full"):
            prepare(disk / "demo")
        assert not (disk / "demo" / "ready").exists() and not list(disk.rglob(LEFTOVERS))
