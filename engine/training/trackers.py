"""Where the curves go: TensorBoard, Weights & Biases, or both. Imported lazily; knows names and numbers only."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..contract.errors import OptionError

KINDS = ("tensorboard", "wandb", "all")


class Tracker(Protocol):
    """Something that keeps scalars by name and step."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoardTracker:
    """Scalars in an event file, readable with `tensorboard --logdir`."""

    def __init__(self, folder: Path, config: Mapping[str, Any] | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(log_dir=str(folder))
        if config:
            text = "\n".join(f"- {key}: {value}" for key, value in config.items())
            self._writer.add_text("config", text, 0)
        self._writer.flush()

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """A run at Weights & Biases."""

    def __init__(self, project: str, *, name: str, api_key: str, folder: Path | None, config: Any, init: Any) -> None:
        import wandb

        if api_key:
            wandb.login(key=api_key)
        settings = {"project": project, "name": name or None, "dir": str(folder) if folder else None, "config": config}
        self._run = wandb.init(**{**settings, **init})

    def log(self, values: Mapping[str, float], step: int) -> None:
        # Epoch curves count in epochs, and a run takes only rising steps, so the count goes in as a value.
        if "loss/epoch" in values:
            self._run.log({**values, "epoch": step})
        else:
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def open_trackers(
    log_with: str | None,
    *,
    logging_dir: str | Path | None,
    log_prefix: str = "",
    tracker_name: str = "network_train",
    wandb_run_name: str = "",
    wandb_api_key: str = "",
    config: Mapping[str, Any] | None = None,
    tracker_config: Mapping[str, Any] | None = None,
) -> Sequence[Tracker]:
    """The trackers that the options ask for; none when neither `--log_with` nor `--logging_dir` is given.

    Files go to `{logging_dir}/{log_prefix}{date}/{tracker_name}`. `config` is shown with the run (`--log_config`);
    `tracker_config` is what `--log_tracker_config` holds, by tracker.
    """
    if not log_with and not logging_dir:
        return ()
    log_with = log_with or "tensorboard"
    if log_with not in KINDS:
        raise OptionError(f"--log_with {log_with} is unknown.", f"Choose one of {', '.join(KINDS)}.")
    run = None
    if logging_dir:
        run = Path(logging_dir) / f"{log_prefix}{time.strftime('%Y%m%d%H%M%S')}"
    trackers: list[Tracker] = []
    if log_with in ("tensorboard", "all"):
        if run is None:
            raise OptionError(f"--log_with {log_with} needs a folder.", "Set --logging_dir.")
        _require("tensorboard", log_with)
        trackers.append(TensorBoardTracker(run / tracker_name, config))
    if log_with in ("wandb", "all"):
        _require("wandb", log_with)
        if run is not None:
            os.makedirs(run, exist_ok=True)
        init = dict((tracker_config or {}).get("wandb", {}))
        trackers.append(
            WandbTracker(tracker_name, name=wandb_run_name, api_key=wandb_api_key, folder=run, config=config, init=init)
        )
    return trackers


def _require(package: str, log_with: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise OptionError(
            f"--log_with {log_with} needs the package {package}, which is not in the engine's environment.",
            f"Install {package} there, or choose another --log_with.",
        )
