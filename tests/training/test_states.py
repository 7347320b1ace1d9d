"""State folders: whole or not there, damage found, the newest complete one named."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from engine.contract.errors import DiskError, OptionError, WeightsError
from engine.training import states
from engine.training.checkpoints import Checkpoints, Keep, old_epoch, old_step
from engine.training.states import Position, find_latest_state, read_position, read_state, write_state
from tests.training.toy_job import Job, job


@pytest.fixture
def some(tmp_path: Path) -> Job:
    made = job(tmp_path / "out")
    made.run()
    return made


def put(some: Job, folder: Path, **values) -> Path:
    write_state(folder, some.setup.parts, Position(**{"seed": 5, "losses": (0.1, 1 / 3), **values}))
    return folder


def test_round_trip(tmp_path: Path, some: Job) -> None:
    folder = put(some, tmp_path / "toy-state", step=7, epoch=1, batch=2, batches_per_epoch=5)
    assert sorted(path.name for path in folder.iterdir()) == [
        "lora.safetensors", "manifest.json", "optimizer.pt", "progress.json", "scheduler.pt"
    ]  # fmt: skip
    fresh = job(tmp_path / "out")
    position = read_state(folder, fresh.setup.parts)
    assert position == Position(step=7, epoch=1, batch=2, seed=5, losses=(0.1, 1 / 3), batches_per_epoch=5)
    assert read_position(folder) == position
    assert fresh.setup.scheduler.get_last_lr() == some.setup.scheduler.get_last_lr()
    ours, theirs = fresh.built.optimizer.state_dict()["state"], some.built.optimizer.state_dict()["state"]
    assert all(torch.equal(value, theirs[key][name]) for key, entry in ours.items() for name, value in entry.items())


def test_latest_is_by_step_and_only_complete_ones_of_that_name(tmp_path: Path, some: Job) -> None:
    assert find_latest_state(tmp_path / "nowhere", "toy") is None
    put(some, tmp_path / "toy-step00000020-state", step=20)
    put(some, tmp_path / "toy-000003-state", step=30)
    newest = put(some, tmp_path / "toy-step00000040-state", step=40)
    put(some, tmp_path / "toy-two-step00000090-state", step=90)
    put(some, tmp_path / "other-state", step=99)
    assert find_latest_state(tmp_path, "toy") == newest
    (newest / "optimizer.pt").write_bytes((newest / "optimizer.pt").read_bytes()[:-1])
    assert find_latest_state(tmp_path, "toy") == tmp_path / "toy-000003-state"


def test_every_truncated_or_missing_file_is_found_and_the_previous_state_named(tmp_path: Path, some: Job) -> None:
    older = put(some, tmp_path / "toy-step00000010-state", step=10)
    whole = put(some, tmp_path / "whole", step=20)
    for name in ("lora.safetensors", "optimizer.pt", "scheduler.pt", "progress.json", "manifest.json"):
        for damage in ("cut", "gone"):
            broken = tmp_path / "toy-step00000020-state"
            shutil.rmtree(broken, ignore_errors=True)
            shutil.copytree(whole, broken)
            file = broken / name
            file.write_bytes(file.read_bytes()[:-5]) if damage == "cut" else file.unlink()
            with pytest.raises(WeightsError) as caught:
                read_state(broken, some.setup.parts)
            assert str(older) in caught.value.hint, name


def test_content_damaged_at_the_right_size_is_found(tmp_path: Path, some: Job) -> None:
    folder = put(some, tmp_path / "toy-state", step=10)
    for name in ("lora.safetensors", "optimizer.pt"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(b"\xff" * 64 + content[64:])
        with pytest.raises(WeightsError, match="damaged"):
            read_state(folder, some.setup.parts)
        (folder / name).write_bytes(content)


def test_another_tools_state_is_told_apart(tmp_path: Path, some: Job) -> None:
    folder = tmp_path / "toy-state"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(WeightsError, match="another tool"):
        read_position(folder)
    with pytest.raises(WeightsError, match="no such folder"):
        read_position(tmp_path / "missing")
    (tmp_path / "lora.safetensors").write_bytes(b"x")
    with pytest.raises(WeightsError, match="a file, but a state is a folder") as caught:
        read_position(tmp_path / "lora.safetensors")
    assert "--network_weights" in caught.value.hint


def test_states_of_another_network_or_optimizer_are_refused(tmp_path: Path, some: Job) -> None:
    folder = put(some, tmp_path / "toy-state", step=10)
    with pytest.raises(OptionError, match="AdamW") as caught:
        read_state(folder, job(tmp_path / "out", optimizer="SGD").setup.parts)
    assert "--optimizer_type AdamW" in caught.value.hint
    smaller = job(tmp_path / "out")
    smaller.network.adapters.pop("lora_unet_blocks_0_inner")
    with pytest.raises(WeightsError, match="do not belong"):
        read_state(folder, smaller.setup.parts)


@pytest.mark.parametrize("broken", ["save_file", "fsync", "manifest"])
def test_a_failing_write_leaves_the_older_state_and_nothing_else(
    tmp_path: Path, some: Job, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    folder = put(some, tmp_path / "toy-state", step=10)

    def full(*arguments, **values):
        raise OSError(28, "No space left on device")

    if broken == "save_file":
        monkeypatch.setattr(states, "save_file", full)
    elif broken == "fsync":
        monkeypatch.setattr("os.fsync", full)
    else:
        monkeypatch.setattr(states.json, "dumps", full)
    with pytest.raises(DiskError, match="No space left"):
        put(some, folder, step=20)
    monkeypatch.undo()
    assert read_position(folder).step == 10
    assert [path.name for path in tmp_path.iterdir() if path.name != "out"] == ["toy-state"]


def test_a_kill_between_the_two_renames_still_leaves_a_state_to_find(
    tmp_path: Path, some: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = put(some, tmp_path / "toy-state", step=10)
    replace = os.replace

    def once(source, target) -> None:
        if Path(target) == folder:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("os.replace", once)
    with pytest.raises(KeyboardInterrupt):
        put(some, folder, step=20)
    monkeypatch.undo()
    found = find_latest_state(tmp_path, "toy")
    assert found is not None and read_position(found).step == 10
    put(some, folder, step=30)
    assert read_position(folder).step == 30 and find_latest_state(tmp_path, "toy") == folder


def test_progress_is_readable_by_a_person(tmp_path: Path, some: Job) -> None:
    folder = put(some, tmp_path / "toy-state", step=10)
    progress = json.loads((folder / "progress.json").read_text())
    assert progress["step"] == 10 and progress["optimizer"] == "AdamW" and progress["losses"] == [0.1, 1 / 3]


@pytest.mark.parametrize(
    ("step", "every", "last", "gone"),
    [
        (50, 10, 30, 10),
        (40, 10, 30, None),
        (60, 10, 30, 20),
        (50, 10, None, None),
        (100, 20, 5, 80),
        (10, 10, 30, None),
    ],
)
def test_which_step_goes(step: int, every: int, last: int | None, gone: int | None) -> None:
    assert old_step(step, every, last) == gone


@pytest.mark.parametrize(
    ("epoch", "every", "last", "gone"), [(6, 2, 2, 2), (4, 2, 2, None), (3, 1, 1, 2), (3, 1, None, None)]
)
def test_which_epoch_goes(epoch: int, every: int, last: int | None, gone: int | None) -> None:
    assert old_epoch(epoch, every, last) == gone


def test_a_missing_name_or_unusable_folder_is_told_before_training(tmp_path: Path) -> None:
    """The reference crashes at the first save."""

    def made(folder: Path, name: str) -> Checkpoints:
        return Checkpoints(folder, name, keep=Keep(), write_lora=lambda path, step, epoch: None, say=lambda event: None)

    with pytest.raises(OptionError, match="--output_name"):
        made(tmp_path, "")
    with pytest.raises(OptionError, match="--output_dir|path"):
        made(tmp_path, "a/b")
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="--output_dir"):
        made(tmp_path / "file" / "sub", "a")
    with pytest.raises(OptionError, match="--save_every_n_steps"):
        Keep(save_every_n_steps=0)
