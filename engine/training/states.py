"""State folders: everything that a training needs to go on exactly where it was.

A folder holds the LoRA in float32 and its average, if there is one, the optimizer, the schedule, the loss scaler, the
history of the loss, and `progress.json` with the step, the epoch, the place in the epoch, and whose state it is. There
is no random state in it: every draw of the loop is seeded from (seed, step, micro-batch), so the seed in
`progress.json` is all that is needed. A folder is written under another name and renamed, and `manifest.json` lists
sizes and checksums, so that one which is half-written, truncated or damaged is never read.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ..contract import saved_names
from ..contract.errors import OptionError, WeightsError
from ..contract.files import whole_folder

_LORA = "lora.safetensors"
_PROGRESS = "progress.json"
_MANIFEST = "manifest.json"
_FORMAT = 1
_PIECE = 1 << 22  # bytes that are read at once
_ADVICE = "Free some space, choose another --output_dir, or train without --save_state."


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a training is. `epoch` counts from 0; `batch` are micro-batches of that epoch that are done, by all
    processes together.

    `losses` is the window of the average; `watch`, `guards` and `best` are what the files of these names in training/
    remember. `batches_per_epoch`, `accumulation` and `processes` say for which setup `batch` has a meaning.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seed: int = 0
    losses: tuple[float, ...] = ()
    batches_per_epoch: int = 0
    accumulation: int = 1
    processes: int = 1
    watch: Mapping[str, Any] = field(default_factory=dict)
    guards: tuple[Mapping[str, Any], ...] = ()
    best: Mapping[str, Any] = field(default_factory=dict)

    @property
    def epochs_begun(self) -> int:
        """The number of the epoch that the last step belongs to, from 1; 0 before the first step."""
        return self.epoch + (self.batch > 0)


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Whose state it is. `training` is the same for all states of one training, however often it was interrupted;
    `options` are those that it was made with (tasks/resuming.py); a `passing` one goes when newer ones come."""

    training: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    passing: bool = False


@dataclass(frozen=True, kw_only=True)
class StateParts:
    """What has to go on as it was. `network` has state() and load_state(); the others have state_dict()."""

    network: Any
    optimizer: Any
    scheduler: Any
    scaler: Any = None
    history: Any = None
    ema: Any = None


def write_state(folder: Path, parts: StateParts, position: Position, *, owner: Owner | None = None) -> None:
    """Write a state folder whole or not at all; an older one of the same name is replaced. DiskError when it fails."""
    with whole_folder(folder, advice=_ADVICE, replace=True) as temporary:
        _write_parts(temporary, parts, position, owner or Owner())


def _write_parts(folder: Path, parts: StateParts, position: Position, owner: Owner) -> None:
    lora = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in parts.network.state().items()}
    save_file(lora, folder / _LORA)
    for name, part in _pickled(parts).items():
        torch.save(part.state_dict(), folder / name)
    progress = asdict(position) | {"optimizer": type(_bare(parts.optimizer)).__name__, "owner": asdict(owner)}
    (folder / _PROGRESS).write_text(json.dumps(progress, indent=1), encoding="utf-8")
    written = sorted(folder.iterdir())
    manifest = {
        "format": _FORMAT,
        "files": {file.name: file.stat().st_size for file in written},
        "crc32": {file.name: _checksum(file) for file in written},
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _checksum(file: Path) -> str:
    value = 0
    with open(file, "rb") as stream:
        while piece := stream.read(_PIECE):
            value = zlib.crc32(piece, value)
    return f"{value:08x}"


def _pickled(parts: StateParts) -> dict[str, Any]:
    found = {
        "optimizer.pt": parts.optimizer,
        "scheduler.pt": parts.scheduler,
        "scaler.pt": parts.scaler,
        "history.pt": parts.history,
        "ema.pt": parts.ema,
    }
    return {name: part for name, part in found.items() if part is not None}


def _bare(optimizer: Any) -> Any:
    """The optimizer behind accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def complaint(folder: Path) -> str:
    """Why a state folder cannot be used; empty when it can."""
    if folder.is_file():
        return "this is a file, but a state is a folder, NAME-state"
    if not folder.is_dir():
        return "there is no such folder"
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        sizes, sums = dict(manifest["files"]), dict(manifest.get("crc32", {}))
        newer = manifest["format"] != _FORMAT
    except FileNotFoundError:
        if any(folder.glob("*.safetensors")) or any(folder.glob("random_states_*")):
            return (
                "it was written by another tool, which does not store the step in it, so training cannot resume from it"
            )
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
    for name in sizes:
        if name in sums and _checksum(folder / str(name)) != sums[name]:
            return f"{name} is damaged: its content is not what was written"
    return ""


def read_position(folder: Path) -> Position:
    """Where a state folder goes on; needed before the data and the schedule are set up. Checks the whole folder."""
    _check(folder)
    try:
        values = _progress(folder)
        known = {field.name: values[field.name] for field in fields(Position) if field.name in values}
        rows = {"losses": tuple(values["losses"]), "guards": tuple(values.get("guards", ()))}
        return Position(**{**known, **rows})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"--resume {folder}: its {_PROGRESS} cannot be read ({error}).") from error


def read_owner(folder: Path) -> Owner:
    """Whose state a folder is; an Owner without a name for a state of before there were any, or one without a head."""
    try:
        return Owner(**_progress(folder)["owner"])
    except (OSError, ValueError, KeyError, TypeError):
        return Owner()


def _progress(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
    return values


def read_state(folder: Path, parts: StateParts) -> Position:
    """Fill the parts from a state folder and return where to go on.

    WeightsError for a folder that is missing, truncated or of another network; it names an older complete state.
    OptionError when it was made with another optimizer.
    """
    position = read_position(folder)
    try:
        progress = _progress(folder)
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


def _older(folder: Path) -> str:
    """A hint that names the newest complete state beside a broken one, or another use for a file."""
    if folder.is_file():
        return "To begin with what a LoRA file holds, give it as --network_weights."
    name = saved_names.trained_name(folder.name)
    latest = find_latest_state(folder.parent, name) if name else None
    return f"The newest complete state is {latest}." if latest else "There is no other complete state beside it."


def find_latest_state(output_dir: Path | str, name: str) -> Path | None:
    """The complete state of `--output_name name` that got furthest; None when there is none."""
    return next((folder for folder in states_of(output_dir, name) if not complaint(folder)), None)


def states_of(output_dir: Path | str, name: str) -> Iterator[Path]:
    """The state folders of `--output_name name`, those that got furthest first. Some may be broken: see `complaint`."""
    folder = Path(output_dir)
    if folder.is_dir():
        pattern = saved_names.states_of(name)
        yield from sorted((path for path in folder.iterdir() if pattern.fullmatch(path.name)), key=_furthest)[::-1]


def _furthest(folder: Path) -> tuple[int, float]:
    try:
        return int(_progress(folder)["step"]), (folder / _PROGRESS).stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError):
        return -1, 0.0
