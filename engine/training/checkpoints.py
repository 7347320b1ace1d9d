"""When a LoRA and its state are saved, under which names, and which older ones go.

The names are musubi-tuner's: `{name}-{epoch:06d}`, `{name}-step{step:08d}`, `{name}` with `.safetensors`, and the same
bases with `-state` for state folders. Knows no metadata: `write_lora` makes the file.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..contract.errors import DiskError, OptionError
from ..contract.events import Artifact, Say
from .states import Position, StateParts, write_state

WriteLora = Callable[[Path, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Keep:
    """The options about saving, under their own names."""

    save_every_n_steps: int | None = None
    save_every_n_epochs: int | None = None
    save_last_n_steps: int | None = None
    save_last_n_epochs: int | None = None
    save_last_n_steps_state: int | None = None
    save_last_n_epochs_state: int | None = None
    save_state: bool = False
    save_state_on_train_end: bool = False

    def __post_init__(self) -> None:
        for name in ("save_every_n_steps", "save_every_n_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"--{name} {value} must be at least 1.")


class Checkpoints:
    """Saves under the right names. Only the main process may call the `save_…` methods."""

    def __init__(self, folder: Path | str, name: str, *, keep: Keep, write_lora: WriteLora, say: Say) -> None:
        """`write_lora(path, step, epoch)` writes one LoRA file, whole or not at all."""
        if not name:
            raise OptionError("--output_name is missing.", "Give the LoRA a name, e.g. --output_name my_lora.")
        if Path(name).name != name:
            raise OptionError(f"--output_name {name!r} is a path.", "The folder is --output_dir.")
        self.folder, self.name, self.keep = Path(folder), name, keep
        self._write_lora, self._say = write_lora, say
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiskError(f"--output_dir {folder} cannot be made ({error}).") from error
        if not os.access(self.folder, os.W_OK):
            raise DiskError(f"--output_dir {folder} is not writable.", "Choose another --output_dir.")

    def due_after_step(self, step: int) -> bool:
        """Whether `--save_every_n_steps` asks for a file now."""
        return bool(self.keep.save_every_n_steps) and step % (self.keep.save_every_n_steps or 1) == 0

    def due_after_epoch(self, epoch: int, epochs: int) -> bool:
        """Whether `--save_every_n_epochs` asks for a file after `epoch` (from 1); the last epoch has its own file."""
        every = self.keep.save_every_n_epochs
        return bool(every) and epoch % (every or 1) == 0 and epoch < epochs

    def save_step(self, parts: StateParts, position: Position, *, with_state: bool | None = None) -> Path:
        """Save after a step. `with_state` overrides `--save_state` (a stop or a save on request keeps the state)."""
        step = position.step
        path = self._save(step_base(self.name, step), parts, position, self.keep.save_state, with_state)
        keep, every = self.keep, self.keep.save_every_n_steps
        if every and step % every == 0:
            self._remove_lora(step_base(self.name, old_step(step, every, keep.save_last_n_steps)))
            if keep.save_state:
                states = keep.save_last_n_steps_state or keep.save_last_n_steps
                self._remove_state(step_base(self.name, old_step(step, every, states)))
        return path

    def save_epoch(self, epoch: int, parts: StateParts, position: Position) -> Path:
        """Save after `epoch` (from 1)."""
        path = self._save(epoch_base(self.name, epoch), parts, position, self.keep.save_state, None, epoch)
        keep, every = self.keep, self.keep.save_every_n_epochs or 1
        self._remove_lora(epoch_base(self.name, old_epoch(epoch, every, keep.save_last_n_epochs)))
        if keep.save_state:
            states = keep.save_last_n_epochs_state or keep.save_last_n_epochs
            self._remove_state(epoch_base(self.name, old_epoch(epoch, every, states)))
        return path

    def save_last(self, epochs: int, parts: StateParts, position: Position) -> Path:
        """Save the finished LoRA under its plain name."""
        state = self.keep.save_state or self.keep.save_state_on_train_end
        return self._save(self.name, parts, position, state, None, epochs)

    def _save(
        self,
        base: str,
        parts: StateParts,
        position: Position,
        state: bool,
        with_state: bool | None,
        epoch: int | None = None,
    ) -> Path:
        path = self.folder / f"{base}.safetensors"
        self._write_lora(path, position.step, position.epoch + 1 if epoch is None else epoch)
        self._say(Artifact(kind="LoRA", path=str(path)))
        if state if with_state is None else with_state:
            folder = self.folder / f"{base}-state"
            write_state(folder, parts, position)
            self._say(Artifact(kind="state", path=str(folder)))
        return path

    def _remove_lora(self, base: str) -> None:
        if base:
            (self.folder / f"{base}.safetensors").unlink(missing_ok=True)

    def _remove_state(self, base: str) -> None:
        if base:
            shutil.rmtree(self.folder / f"{base}-state", ignore_errors=True)


def step_base(name: str, step: int | None) -> str:
    """File name without ending for a step; empty for None."""
    return "" if step is None else f"{name}-step{step:08d}"


def epoch_base(name: str, epoch: int | None) -> str:
    """File name without ending for an epoch (from 1); empty for None."""
    return "" if epoch is None else f"{name}-{epoch:06d}"


def old_step(step: int, every: int, last: int | None) -> int | None:
    """The step whose file goes when `step` is saved: the newest multiple of `every` more than `last` steps back."""
    if not last:
        return None
    gone = step - last - 1
    gone -= gone % every
    return gone if gone > 0 else None


def old_epoch(epoch: int, every: int, last: int | None) -> int | None:
    """The epoch whose file goes when `epoch` is saved; `last` counts saved files."""
    if not last:
        return None
    gone = epoch - every * last
    return gone if gone > 0 else None
