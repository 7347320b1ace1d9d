"""State folders: everything that a training needs to go on exactly where it was.

A folder holds the LoRA in float32, the optimizer, the schedule, the loss scaler, and `progress.json` with the step,
the epoch and the place in the epoch. There is no random state in it: every draw of the loop is seeded from (seed,
step, micro-step, process), so the seed in `progress.json` is all that is needed. A folder is written under another
name and renamed, and `manifest.json` lists the sizes, so a half-written or truncated one is never read.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ..contract.errors import OptionError, WeightsError
from ..contract.files import PREVIOUS_SUFFIX, whole_folder

_LORA = "lora.safetensors"
_PROGRESS = "progress.json"
_MANIFEST = "manifest.json"
_FORMAT = 1
_ADVICE = "Free some space, choose another --output_dir, or train without --save_state."
_NUMBERED = rf"(-step\d{{8}}|-\d{{6}})?-state({re.escape(PREVIOUS_SUFFIX)})?"


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a training is. `epoch` counts from 0; `batch` are micro-batches of that epoch that are done.

    `losses` is the window of the average. The last three fields say for which setup `batch` has a meaning.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seed: int = 0
    losses: tuple[float, ...] = ()
    not_finite: int = 0
    batches_per_epoch: int = 0
    accumulation: int = 1
    processes: int = 1


@dataclass(frozen=True, kw_only=True)
class StateParts:
    """The moving parts of a training. `network` has state() and load_state(); the others have state_dict()."""

    network: Any
    optimizer: Any
    scheduler: Any
    scaler: Any = None


def write_state(folder: Path, parts: StateParts, position: Position) -> None:
    """Write a state folder whole or not at all; an older one of the same name is replaced. DiskError when it fails."""
    with whole_folder(folder, advice=_ADVICE, replace=True) as temporary:
        _write_parts(temporary, parts, position)


def _write_parts(folder: Path, parts: StateParts, position: Position) -> None:
    lora = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in parts.network.state().items()}
    save_file(lora, folder / _LORA)
    for name, part in _pickled(parts).items():
        torch.save(part.state_dict(), folder / name)
    progress = asdict(position) | {"optimizer": type(_bare(parts.optimizer)).__name__}
    (folder / _PROGRESS).write_text(json.dumps(progress, indent=1), encoding="utf-8")
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    manifest = {"format": _FORMAT, "files": sizes}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _pickled(parts: StateParts) -> dict[str, Any]:
    found = {"optimizer.pt": parts.optimizer, "scheduler.pt": parts.scheduler, "scaler.pt": parts.scaler}
    return {name: part for name, part in found.items() if part is not None}


def _bare(optimizer: Any) -> Any:
    """The optimizer behind accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def complaint(folder: Path) -> str:
    """Why a state folder cannot be used; empty when it can."""
    if not folder.is_dir():
        return "there is no such folder"
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        sizes = dict(manifest["files"])
        newer = manifest["format"] != _FORMAT
    except FileNotFoundError:
        if any(folder.glob("*.safetensors")) or any(folder.glob("random_states_*")):
            return "it was written by another tool, which keeps no step in it, so there is nothing to go on from"
        return "it is not a state folder, or was never finished (no manifest.json)"
    except (OSError, ValueError, KeyError, TypeError):
        return "its manifest.json cannot be read"
    if newer:
        return "it was written by another version of the engine"
    for name, size in sizes.items():
        file = folder / str(name)
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} of {size} bytes"
    return ""


def read_position(folder: Path) -> Position:
    """Where a state folder goes on; needed before the data and the schedule are set up. Checks the whole folder."""
    _check(folder)
    try:
        values = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
        values.pop("optimizer", None)
        return Position(**{**values, "losses": tuple(values["losses"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"--resume {folder}: its {_PROGRESS} cannot be read ({error}).") from error


def read_state(folder: Path, parts: StateParts) -> Position:
    """Fill the parts from a state folder and return where to go on.

    WeightsError for a folder that is missing, truncated or of another network; it names an older complete state.
    OptionError when it was made with another optimizer.
    """
    position = read_position(folder)
    try:
        progress = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
        lora = load_file(folder / _LORA)
        stored = {
            name: torch.load(folder / name, map_location="cpu", weights_only=True)
            for name in _pickled(parts)
            if (folder / name).exists()
        }
    except Exception as error:  # right sizes, broken content: torch and safetensors raise many kinds
        raise WeightsError(f"--resume {folder}: it is damaged ({error}).", _older(folder)) from error
    ours, theirs = type(_bare(parts.optimizer)).__name__, progress.get("optimizer", "")
    if theirs and theirs != ours:
        raise OptionError(
            f"--resume {folder} was trained with the optimizer {theirs}, not with {ours}.",
            f"Choose --optimizer_type {theirs}, or start from its LoRA with --network_weights.",
        )
    parts.network.load_state(lora)
    for name, part in _pickled(parts).items():
        if name in stored:
            _load(part, stored[name], folder)
    return position


def _load(part: Any, stored: dict[str, Any], folder: Path) -> None:
    try:
        part.load_state_dict(stored)
    except (ValueError, KeyError, RuntimeError) as error:
        raise OptionError(
            f"--resume {folder} does not fit the {type(part).__name__} of this job ({error}).",
            "Use the same network, optimizer and schedule options as when it was saved.",
        ) from error


def _check(folder: Path) -> None:
    why = complaint(folder)
    if why:
        raise WeightsError(f"--resume {folder}: {why}.", _older(folder))


_NAME = re.compile(rf"(?P<name>.+?){_NUMBERED}")


def _older(folder: Path) -> str:
    """A hint that names the newest complete state beside a broken one."""
    found = _NAME.fullmatch(folder.name)
    latest = find_latest_state(folder.parent, found["name"]) if found else None
    return f"The newest complete state is {latest}." if latest else "There is no other complete state beside it."


def find_latest_state(output_dir: Path | str, name: str) -> Path | None:
    """The complete state of `--output_name name` that got furthest; None when there is none."""
    folder = Path(output_dir)
    if not folder.is_dir():
        return None
    pattern = re.compile(re.escape(name) + _NUMBERED)
    complete = [path for path in folder.iterdir() if pattern.fullmatch(path.name) and not complaint(path)]
    return max(complete, key=_furthest, default=None)


def _furthest(folder: Path) -> tuple[int, float]:
    try:
        step = int(json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        step = -1
    return step, (folder / _MANIFEST).stat().st_mtime
