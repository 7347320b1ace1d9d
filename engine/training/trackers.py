"""Where the curves go: TensorBoard, Weights & Biases, or both. Imported lazily; knows names, numbers and pictures.

`choose_trackers` finds everything that can be wrong and touches nothing, so that it can be asked before a model is
loaded; what it returns opens a tracker each.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..contract import toml
from ..contract.errors import OptionError, as_failed
from ..contract.events import Say, Warning_
from ..contract.files import in_the_way
from ..contract.packages import how_to_install
from ..contract.wording import did_you_mean
from .arguments import check_names

if TYPE_CHECKING:
    from PIL import Image

KINDS = ("tensorboard", "wandb")
_CONFIG = "--log_tracker_config"


class Tracker(Protocol):
    """Something that keeps scalars by name and step."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def log_sample(self, name: str, path: Path, picture: Image.Image, step: int) -> None:
        """A sample made after `step`: the file, and a small picture of it."""

    def close(self) -> None: ...


OpenTracker = Callable[[], Tracker]


class TensorBoardTracker:
    """Scalars in an event file, readable with `tensorboard --logdir`. `init` are arguments of SummaryWriter."""

    def __init__(self, folder: Path, config: Mapping[str, Any], init: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(**{"log_dir": str(folder), **init})
        if config:
            text = "\n".join(f"- {key}: {value}" for key, value in config.items())
            self._writer.add_text("config", text, 0)
        self._writer.flush()

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def log_sample(self, name: str, path: Path, picture: Image.Image, step: int) -> None:
        self._writer.add_image(name, np.asarray(picture), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """A run at Weights & Biases. `init` are arguments of wandb.init. OptionError when it takes none."""

    def __init__(self, api_key: str, init: Mapping[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        folder = init.get("dir")
        if folder:
            os.makedirs(folder, exist_ok=True)
        try:
            if api_key:
                wandb.login(key=api_key)
            self._run = wandb.init(**init)
        except wandb.Error as error:  # no key, a wrong one, no connection, a project's name that it does not like
            raise OptionError(
                f"--log_with: wandb cannot start a run: {' '.join(str(error).split())}",
                "Give --wandb_api_key, log in with `wandb login`, or keep the run here with WANDB_MODE=offline.",
            ) from error

    def log(self, values: Mapping[str, float], step: int) -> None:
        # Epoch curves count in epochs, and a run takes only rising steps, so the count goes in as a value.
        if "loss/epoch" in values:
            self._run.log({**values, "epoch": step})
        else:
            self._run.log(dict(values), step=step)

    def log_sample(self, name: str, path: Path, picture: Image.Image, step: int) -> None:
        # Without a step: after an epoch's curve the run is past this one, and would drop it.
        wandb = importlib.import_module("wandb")
        kind = wandb.Image if path.suffix == ".png" else wandb.Video
        self._run.log({name: kind(str(path), caption=f"step {step}")}, commit=False)

    def close(self) -> None:
        self._run.finish()


class LastingTracker:
    """A tracker that falls silent once it fails, as where the disk is full: no curve is worth a training."""

    def __init__(self, tracker: Tracker, say: Say) -> None:
        self._tracker, self._say, self._failed = tracker, say, False

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._try(lambda: self._tracker.log(values, step))

    def log_sample(self, name: str, path: Path, picture: Image.Image, step: int) -> None:
        self._try(lambda: self._tracker.log_sample(name, path, picture, step))

    def close(self) -> None:
        self._try(self._tracker.close)

    def _try(self, call: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            call()
        except Exception as error:  # whatever a library raises: a disk's error, a connection's, a queue's
            self._failed = True
            kind = type(self._tracker).__name__.removesuffix("Tracker")
            self._say(Warning_(message=f"{kind} gets no more of this training: {as_failed(error)[0].message}"))


def choose_trackers(
    log_with: str | None,
    *,
    logging_dir: str | Path | None,
    log_prefix: str = "",
    tracker_name: str = "network_train",
    wandb_run_name: str = "",
    wandb_api_key: str = "",
    config: Mapping[str, Any] | None = None,
    tracker_config: str | Path | None = None,
    started: str = "",
    first_step: int = 1,
) -> Sequence[OpenTracker]:
    """What opens the trackers that the options ask for; nothing when `log_with` is None.

    Files go to `{logging_dir}/{log_prefix}{started}/{tracker_name}`; `started` is the time of now where it is not told.
    A training that goes on logs into the folder that it began, where what it had logged from `first_step` on no longer
    counts. `config` is shown with the run (`--log_config`);
    `tracker_config` is a TOML file with a table for each tracker: arguments of SummaryWriter and of wandb.init, which
    win over what is decided here, but not over `--wandb_run_name`. OptionError.
    """
    if log_with is None:
        return ()
    if log_with not in (*KINDS, "all"):
        raise OptionError(f"--log_with {log_with} is unknown.", f"Choose one of {', '.join((*KINDS, 'all'))}.")
    wanted = KINDS if log_with == "all" else (log_with,)
    for package in wanted:
        _require(package, log_with)
    tables = _tracker_tables(tracker_config)
    obstacle = in_the_way(Path(logging_dir)) if logging_dir else None
    if obstacle is not None:
        raise OptionError(f"--logging_dir {logging_dir}: {obstacle} is a file, not a folder.", "Choose another folder.")
    started = started or time.strftime("%Y%m%d%H%M%S")
    run = Path(logging_dir) / f"{log_prefix}{started}" if logging_dir else None
    chosen: list[OpenTracker] = []
    if "tensorboard" in wanted:
        if run is None:
            raise OptionError(f"--log_with {log_with} needs a folder.", "Set --logging_dir.")
        from torch.utils.tensorboard import SummaryWriter

        init, folder = tables.get("tensorboard", {}), run / tracker_name
        check_names(f"{_CONFIG} {tracker_config}, [tensorboard]", init, SummaryWriter, own=("log_dir",))
        again = {"purge_step": first_step} if first_step > 1 else {}
        chosen.append(lambda: TensorBoardTracker(folder, config or {}, again | init))
    if "wandb" in wanted:
        told = tables.get("wandb", {})
        check_names(f"{_CONFIG} {tracker_config}, [wandb]", told, importlib.import_module("wandb").init)
        decided = {"project": tracker_name, "dir": str(run or ""), "config": dict(config or {})}
        named = {"name": wandb_run_name} if wandb_run_name else {}
        settings = {name: value for name, value in decided.items() if value} | told | named
        chosen.append(lambda: WandbTracker(wandb_api_key, settings))
    return chosen


def _tracker_tables(path: str | Path | None) -> dict[str, dict[str, Any]]:
    """The tables of `--log_tracker_config`, each with the settings of the tracker of its name. OptionError."""
    if path is None:
        return {}
    if not Path(path).is_file():
        raise OptionError(f"{_CONFIG} {path}: there is no such file.", "Correct the path.")
    tables = toml.load(path)
    for name, table in tables.items():
        if name not in KINDS:
            hint = did_you_mean(name, KINDS, f"Put the settings under {' or '.join(f'[{kind}]' for kind in KINDS)}.")
            raise OptionError(f"{_CONFIG} {path}: there is no tracker {name}.", hint)
        if not isinstance(table, dict):
            raise OptionError(f"{_CONFIG} {path}: {name} is not a table.", f"Write [{name}] and the settings below it.")
    return tables


def _require(package: str, log_with: str) -> None:
    if importlib.util.find_spec(package) is None:
        way = "Fix it with: python -m env_bootstrap repair" if package == "tensorboard" else how_to_install(package)
        raise OptionError(
            f"--log_with {log_with} needs the package {package}, which is not in the engine's environment.",
            f"{way} (or choose another --log_with)",
        )
