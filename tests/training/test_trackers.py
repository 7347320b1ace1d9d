"""Trackers: TensorBoard's files, a wandb that is played, and what is wrong before anything is opened."""

from __future__ import annotations

import errno
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.contract.errors import OptionError
from engine.training.trackers import LastingTracker, choose_trackers


class PlayedRun:
    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, float], int | None]] = []
        self.finished = False

    def log(self, values: dict[str, float], step: int | None = None, commit: bool | None = None) -> None:
        self.logged.append((values, step))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of that name: what it was told is in `keys` and `inits`, what it logged in `run`."""
    module: Any = ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.keys, module.inits, module.run = [], [], PlayedRun()

    def init(project=None, name=None, dir=None, config=None, entity=None, tags=None):  # noqa: A002
        module.inits.append({key: value for key, value in locals().items() if value is not None and key != "module"})
        return module.run

    module.Error = type("Error", (Exception,), {})
    module.login = lambda *, key: module.keys.append(key)
    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def settings_file(folder: Path, text: str) -> Path:
    path = folder / "tracker.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_tensorboard_gets_the_scalars_under_their_names(tmp_path: Path) -> None:
    (open_tracker,) = choose_trackers("tensorboard", logging_dir=tmp_path, log_prefix="run_", config={"rate": 1})
    assert not any(tmp_path.iterdir())
    tracker = open_tracker()
    tracker.log({"loss/current": 0.5, "lr/unet": 1e-4}, 1)
    tracker.log({"loss/current": 0.25}, 2)
    tracker.close()
    (run,) = tmp_path.iterdir()
    assert run.name.startswith("run_2") and (run / "network_train").is_dir()
    events = EventAccumulator(str(run / "network_train")).Reload()
    assert set(events.Tags()["scalars"]) == {"loss/current", "lr/unet"}
    assert [(entry.step, entry.value) for entry in events.Scalars("loss/current")] == [(1, 0.5), (2, 0.25)]


def test_tensorboard_takes_settings_of_its_writer(tmp_path: Path) -> None:
    config = settings_file(tmp_path, '[tensorboard]\nfilename_suffix = ".cats"\n')
    (open_tracker,) = choose_trackers("tensorboard", logging_dir=tmp_path / "logs", tracker_config=config)
    open_tracker().close()
    assert list((tmp_path / "logs").rglob("*.cats"))


def test_samples_are_pictures_in_tensorboard_and_files_in_wandb(wandb, tmp_path: Path) -> None:
    wandb.Image = wandb.Video = lambda path, caption: (Path(path).suffix, caption)
    for open_tracker in choose_trackers("all", logging_dir=tmp_path):
        tracker = open_tracker()
        for step, name in ((5, "a.mp4"), (5, "b.png")):
            tracker.log_sample(name, tmp_path / name, Image.new("RGB", (32, 16), "red"), step)
        tracker.close()
    events = EventAccumulator(str(next(tmp_path.glob("*/network_train")))).Reload()
    assert [(image.step, image.width, image.height) for image in events.Images("a.mp4")] == [(5, 32, 16)]
    assert wandb.run.logged == [({"a.mp4": (".mp4", "step 5")}, None), ({"b.png": (".png", "step 5")}, None)]


def test_wandb_is_told_project_name_folder_and_options(wandb, tmp_path: Path) -> None:
    (open_tracker,) = choose_trackers(
        "wandb",
        logging_dir=tmp_path,
        tracker_name="cats",
        wandb_run_name="first",
        wandb_api_key="key",
        config={"rate": 1},
    )
    assert wandb.inits == []
    tracker = open_tracker()
    (told,) = wandb.inits
    assert Path(told.pop("dir")).parent == tmp_path and wandb.keys == ["key"]
    assert told == {"project": "cats", "name": "first", "config": {"rate": 1}}
    tracker.log({"loss/current": 0.5}, 7)
    tracker.log({"loss/epoch": 0.4}, 1)
    tracker.close()
    assert wandb.run.logged == [({"loss/current": 0.5}, 7), ({"loss/epoch": 0.4, "epoch": 1}, None)]
    assert wandb.run.finished


@pytest.mark.parametrize("fails", ["login", "init"])
def test_what_wandb_refuses_is_one_line_and_not_a_fault_of_ours(wandb, monkeypatch, tmp_path: Path, fails: str) -> None:
    def refuse(**values: Any) -> None:
        raise wandb.Error("No API key\nconfigured.")

    (open_tracker,) = choose_trackers("wandb", logging_dir=tmp_path, wandb_api_key="key")
    monkeypatch.setattr(wandb, fails, refuse)
    with pytest.raises(OptionError, match="wandb cannot start a run: No API key configured.") as caught:
        open_tracker()
    assert "--wandb_api_key" in caught.value.hint and "WANDB_MODE=offline" in caught.value.hint


def test_a_settings_file_adds_to_wandb_but_a_flag_keeps_its_word(wandb, tmp_path: Path) -> None:
    """The reference lets the file replace --wandb_run_name."""
    config = settings_file(tmp_path, '[wandb]\nentity = "team"\nproject = "dogs"\nname = "of the file"\n')
    (open_tracker,) = choose_trackers("wandb", logging_dir=None, wandb_run_name="flag", tracker_config=config)
    open_tracker()
    assert wandb.inits == [{"project": "dogs", "name": "flag", "entity": "team"}] and wandb.keys == []


def test_all_means_both(wandb, tmp_path: Path) -> None:
    assert len(choose_trackers("all", logging_dir=tmp_path)) == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[wandv]\na = 1", "Did you mean wandb?"),
        ("name = 'x'", "there is no tracker name"),
        ("wandb = 3", "wandb is not a table"),
        ("[wandb]\nentitty = 'x'", "Did you mean entity?"),
        ("[tensorboard]\nflush = 3", "Did you mean flush_secs?"),
        ("[tensorboard]\nlog_dir = 'x'", "own option"),
        ("[wandb", "not valid TOML"),
    ],
)
def test_a_wrong_settings_file_is_told_before_anything_is_opened(wandb, tmp_path: Path, text: str, told: str) -> None:
    config = settings_file(tmp_path, text)
    with pytest.raises(OptionError) as caught:
        choose_trackers("all", logging_dir=tmp_path / "logs", tracker_config=config)
    assert told in f"{caught.value.message} {caught.value.hint}" and "tracker.toml" in caught.value.message
    assert wandb.inits == [] and not (tmp_path / "logs").exists()


def test_trackers_that_cannot_be_had(tmp_path: Path) -> None:
    assert choose_trackers(None, logging_dir=None) == ()
    with pytest.raises(OptionError, match="--logging_dir|folder"):
        choose_trackers("tensorboard", logging_dir=None)
    with pytest.raises(OptionError, match="unknown"):
        choose_trackers("paper", logging_dir=None)
    with pytest.raises(OptionError, match="there is no such file"):
        choose_trackers("tensorboard", logging_dir=tmp_path, tracker_config=tmp_path / "gone.toml")


@pytest.mark.parametrize(("package", "way"), [("wandb", "add wandb"), ("tensorboard", "repair")])
def test_a_missing_tracker_comes_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str, way: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match=f"needs the package {package}") as caught:
        choose_trackers(package, logging_dir=tmp_path)
    assert f"python -m env_bootstrap {way} " in caught.value.hint


class Broken:
    """A tracker whose disk is full."""

    asked = 0

    def log(self, values, step: int) -> None:
        self.asked += 1
        raise OSError(errno.ENOSPC, "No space left on device")

    log_sample = close = log


def test_a_tracker_that_fails_is_said_once_and_no_longer_asked() -> None:
    broken, said = Broken(), []
    tracker = LastingTracker(broken, said.append)
    for step in range(3):
        tracker.log({"loss/current": 0.5}, step)
    tracker.close()
    (warning,) = said
    assert (
        broken.asked == 1 and "No space left" in warning.message and warning.message.startswith("Broken gets no more")
    )
