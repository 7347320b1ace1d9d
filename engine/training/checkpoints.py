"""When a LoRA and its state are saved, under which names, and which older ones go.

The names are those of contract/saved_names.py. Knows no metadata: `write_lora` makes the file.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..contract import saved_names
from ..contract.errors import DiskError, OptionError
from ..contract.events import Artifact, Say
from ..contract.saved_names import BEST, after_epoch, after_step
from .states import Owner, Position, StateParts, complaint, read_owner, states_of, write_state

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
    save_last_n_states: int = 2

    def __post_init__(self) -> None:
        for name in ("save_every_n_steps", "save_every_n_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"--{name} {value} must be at least 1.")


class Checkpoints:
    """Saves under the right names. Only the main process may call the `save_…` methods."""

    def __init__(
        self,
        folder: Path | str,
        name: str,
        *,
        keep: Keep,
        write_lora: WriteLora,
        say: Say,
        beside: Mapping[str, WriteLora] | None = None,
        on_saved: Callable[[Path], None] | None = None,
        owner: Owner | None = None,
    ) -> None:
        """`write_lora(path, step, epoch)` writes one LoRA file, whole or not at all. `on_saved(path)` hears of each
        file and each state folder.

        `beside`: LoRAs that are saved with it, each under `name` and its ending, as if trained under that name.
        `owner` is written into each state.
        """
        if not name:
            raise OptionError("--output_name is missing.", "Give the LoRA a name, e.g. --output_name my_lora.")
        if Path(name).name != name:
            raise OptionError(f"--output_name {name!r} is a path.", "Name the folder with --output_dir.")
        self.folder, self.name, self.keep = Path(folder), name, keep
        self.newest: Path | None = None  # the LoRA saved last, since this start
        self._say, self._on_saved, self._owner = say, on_saved, owner or Owner()
        self._writers = {"": write_lora, **(beside or {})}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiskError(f"--output_dir {folder} cannot be created ({error}).") from error
        if not os.access(self.folder, os.W_OK):
            raise DiskError(f"--output_dir {folder} is not writable.", "Choose another --output_dir.")

    def due_after_step(self, step: int) -> bool:
        """Whether `--save_every_n_steps` asks for a file now."""
        return is_due(step, self.keep.save_every_n_steps)

    def due_after_epoch(self, epoch: int, epochs: int) -> bool:
        """Whether `--save_every_n_epochs` asks for a file after `epoch` (from 1); the last epoch has its own file."""
        return is_due(epoch, self.keep.save_every_n_epochs) and epoch < epochs

    def save_step(
        self, parts: StateParts, position: Position, *, with_state: bool = False, stopping: bool = False
    ) -> Path:
        """Save after a step. `with_state`: the state too, whatever `--save_state` says, since somebody asked for it.
        `stopping`: likewise, but as a passing state, removed when newer ones exist."""
        step, keep, every = position.step, self.keep, self.keep.save_every_n_steps
        due = self.due_after_step(step)
        kept = with_state or (keep.save_state and (due or not stopping))
        path = self._save(after_step(step), parts, position, kept)
        if due and every:
            self._remove_loras(old_step(step, every, keep.save_last_n_steps), after_step)
            if keep.save_state:
                states = keep.save_last_n_steps_state or keep.save_last_n_steps
                self._remove_state(old_step(step, every, states), after_step)
        if stopping and not kept:
            self._hand_on(self.save_passing_state(parts, position))
        return path

    def save_passing_state(self, parts: StateParts, position: Position) -> Path:
        """Save a state alone, to be removed once `--save_last_n_states` newer ones of its kind exist. A permanent state
        of this step is left as it is."""
        moment = after_step(position.step)
        there = self._state_folder(moment)
        if self._is_to_stay(there):
            return there
        folder = self._write_state(moment, parts, position, passing=True)
        ours = [place for place in states_of(self.folder, self.name) if self._is_ours_and_passing(place)]
        for place in ours[self.keep.save_last_n_states :]:
            shutil.rmtree(place, ignore_errors=True)
        return folder

    def _is_to_stay(self, folder: Path) -> bool:
        owner = read_owner(folder)
        return owner.training == self._owner.training and not owner.passing and not complaint(folder)

    def _is_ours_and_passing(self, folder: Path) -> bool:
        owner = read_owner(folder)
        return owner.passing and owner.training == self._owner.training

    def save_epoch(self, epoch: int, parts: StateParts, position: Position) -> Path:
        """Save after `epoch` (from 1)."""
        path = self._save(after_epoch(epoch), parts, position, self.keep.save_state, epoch)
        keep, every = self.keep, self.keep.save_every_n_epochs or 1
        self._remove_loras(old_epoch(epoch, every, keep.save_last_n_epochs), after_epoch)
        if keep.save_state:
            states = keep.save_last_n_epochs_state or keep.save_last_n_epochs
            self._remove_state(old_epoch(epoch, every, states), after_epoch)
        return path

    def save_best(self, parts: StateParts, position: Position) -> Path:
        """Save the LoRA that is the best so far in place of the one before."""
        return self._save(BEST, parts, position, False, position.epochs_begun)

    def save_last(self, epochs: int, parts: StateParts, position: Position) -> Path:
        """Save the finished LoRA under its plain name."""
        state = self.keep.save_state or self.keep.save_state_on_train_end
        return self._save("", parts, position, state, epochs)

    def _save(
        self, moment: str, parts: StateParts, position: Position, with_state: bool, epoch: int | None = None
    ) -> Path:
        files = self._lora_files(moment)
        for file, write in zip(files, self._writers.values(), strict=True):
            write(file, position.step, position.epoch + 1 if epoch is None else epoch)
            self._say(Artifact(kind="LoRA", path=str(file)))
            self._hand_on(file)
        if with_state:
            self._hand_on(self._write_state(moment, parts, position))
        self.newest = files[0]
        return files[0]

    def _write_state(self, moment: str, parts: StateParts, position: Position, *, passing: bool = False) -> Path:
        folder = self._state_folder(moment)
        write_state(folder, parts, position, owner=replace(self._owner, passing=passing))
        self._say(Artifact(kind="state", path=str(folder)))
        return folder

    def _state_folder(self, moment: str) -> Path:
        return self.folder / saved_names.state(self.name, moment)

    def _hand_on(self, path: Path) -> None:
        if self._on_saved is not None:
            self._on_saved(path)

    def _lora_files(self, moment: str) -> list[Path]:
        """The LoRA files of one save: its own, and those beside it."""
        return [self.folder / saved_names.lora(self.name, moment, ending=ending) for ending in self._writers]

    def _remove_loras(self, number: int | None, after: Callable[[int], str]) -> None:
        if number is not None:
            for file in self._lora_files(after(number)):
                file.unlink(missing_ok=True)

    def _remove_state(self, number: int | None, after: Callable[[int], str]) -> None:
        if number is not None:
            shutil.rmtree(self._state_folder(after(number)), ignore_errors=True)


def is_due(number: int, every: int | None) -> bool:
    """Whether something that happens after every `every` steps or epochs (None: never) happens after this one."""
    return bool(every) and number % (every or 1) == 0


def old_step(step: int, every: int, last: int | None) -> int | None:
    """The step whose file is removed when `step` is saved: the newest multiple of `every` over `last` steps back."""
    if not last:
        return None
    gone = step - last - 1
    gone -= gone % every
    return gone if gone > 0 else None


def old_epoch(epoch: int, every: int, last: int | None) -> int | None:
    """The epoch whose file is removed when `epoch` is saved; `last` counts saved files."""
    if not last:
        return None
    gone = epoch - every * last
    return gone if gone > 0 else None
