"""A disk that refuses what is saved: no step of a training is lost to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from engine.contract.errors import DiskError
from engine.contract.events import Control, Metric, Stage, Warning_
from engine.contract.patience import PATIENCE_S, PAUSE_S
from engine.training.checkpoints import Keep
from engine.training.states import find_latest_state, read_position
from tests.training.toy_job import Job, job


class Disk:
    """Full until `room()`; `asked` counts what it refused. Put under the writer of LoRAs, or under that of states."""

    def __init__(self) -> None:
        self.full, self.asked = False, 0

    def guard(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(path: Path, *arguments: Any, **named: Any) -> Any:
            if self.full:
                self.asked += 1
                raise DiskError(f"{path} could not be written: the disk is full.", "Free some space.")
            return write(path, *arguments, **named)

        return guarded


class Time:
    """A clock that only steps and sleeping move on."""

    def __init__(self, disk: Disk, *, room_after: float = float("inf"), on_sleep: Callable[[], None] | None = None):
        self.now_s, self.slept_s = 0.0, 0.0
        self._disk, self._room_after, self._on_sleep = disk, room_after, on_sleep

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.slept_s += seconds
        if self.slept_s >= self._room_after:
            self._disk.full = False
        if self._on_sleep is not None:
            self._on_sleep()


def on(
    disk: Disk, time: Time, folder: Path, monkeypatch: pytest.MonkeyPatch, during: dict[int, Callable[[], None]],
    **values: Any,
) -> Job:  # fmt: skip
    """A toy training on that disk, a step of which takes 30 s; `during` says what happens in which step."""
    from engine.training import checkpoints

    some = job(folder, setup={"clock": time, "sleep": time.sleep, **values.pop("setup", {})}, **values)
    writers = some.setup.checkpoints._writers
    for ending, write in writers.items():
        writers[ending] = disk.guard(write)
    monkeypatch.setattr(checkpoints, "write_state", disk.guard(checkpoints.write_state))
    say = some.setup.say

    def watching(event: Any) -> None:
        say(event)
        if isinstance(event, Metric):
            time.now_s += 30.0
            during.get(event.step, lambda: None)()

    object.__setattr__(some.setup, "say", watching)
    return some


def fill(disk: Disk) -> Callable[[], None]:
    return lambda: setattr(disk, "full", True)


def clear(disk: Disk) -> Callable[[], None]:
    return lambda: setattr(disk, "full", False)


def plain(folder: Path) -> Job:
    some = job(folder)
    some.run()
    return some


def test_a_full_disk_in_the_middle_ends_nothing_and_a_state_follows_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk()
    keep, during = Keep(save_every_n_steps=3), {3: fill(disk), 6: clear(disk)}
    some = on(disk, Time(disk), tmp_path / "out", monkeypatch, during, keep=keep)
    outcome = some.run()
    warnings = [event.message for event in some.said(Warning_)]
    assert (outcome.step, outcome.stopped) == (10, False)
    assert len(warnings) == 1 and "Step 3 is not saved." in warnings[0] and "Training goes on" in warnings[0]
    assert disk.asked == 2  # the LoRA of step 3, and the state after step 5, a minute later
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["toy-step00000006.safetensors", "toy-step00000007-state", "toy-step00000009.safetensors",
                       "toy.safetensors"]  # fmt: skip
    assert some.losses == plain(tmp_path / "plain").losses


def test_the_state_by_the_clock_is_refused_too_and_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    during = {1: fill(disk), 8: clear(disk)}
    some = on(disk, Time(disk), tmp_path, monkeypatch, during, save_state_every_minutes=1.0)
    some.run()
    assert disk.asked == 3 and len(some.said(Warning_)) == 1  # after steps 2, 4 and 6
    assert sorted(path.name for path in tmp_path.glob("*-state")) == [
        "toy-step00000008-state",
        "toy-step00000010-state",
    ]


def test_the_finished_lora_waits_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    time = Time(disk, room_after=5 * PAUSE_S)
    some = on(disk, time, tmp_path / "out", monkeypatch, {10: fill(disk)})
    outcome = some.run()
    assert outcome.path == tmp_path / "out" / "toy.safetensors" and disk.asked == 5
    assert [event.name for event in some.said(Stage)].count("Waiting for the disk") == 1
    (warning,) = some.said(Warning_)
    assert "Step 10 is not saved yet." in warning.message and "or until you stop it" in warning.message
    theirs = load_file(plain(tmp_path / "plain").setup.checkpoints.newest)
    assert all(value.equal(theirs[name]) for name, value in load_file(outcome.path).items())


def test_a_stop_waits_for_room_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, control = Disk(), Control()

    def stop() -> None:
        disk.full = True
        control.request_stop()

    some = on(disk, Time(disk, room_after=PAUSE_S), tmp_path, monkeypatch, {4: stop}, control=control)
    outcome = some.run()
    assert outcome.stopped and outcome.step == 4 and outcome.path.is_file()
    latest = find_latest_state(tmp_path, "toy")
    assert latest is not None and read_position(latest).step == 4


def test_waiting_ends_after_an_hour_and_leaves_nothing_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk()
    time = Time(disk)
    some = on(disk, time, tmp_path, monkeypatch, {10: fill(disk)})
    with pytest.raises(DiskError, match="the disk is full"):
        some.run()
    assert time.slept_s == PATIENCE_S and list(tmp_path.iterdir()) == [], "nor does it wait for another hour"


def test_a_stop_ends_the_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, control = Disk(), Control()
    time = Time(disk, on_sleep=control.request_stop)
    some = on(disk, time, tmp_path, monkeypatch, {10: fill(disk)}, control=control)
    with pytest.raises(DiskError):
        some.run()
    assert time.slept_s == PAUSE_S
