"""Trained LoRAs appear in ComfyUI's loras folder the moment they are saved.

The training keeps its own folder with states, curves and samples, which no LoRA list should show; the files of the
LoRA itself are linked from there, or copied where the disk cannot link.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ..engine.contract.files import whole_file


class Publisher:
    """Puts the LoRA files of one training into a folder."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._made: dict[Path, Path] = {}

    def take(self, kind: str, path: str) -> None:
        """An artifact of the run was finished."""
        if kind == "LoRA":
            self.published(Path(path))

    def published(self, file: Path) -> Path:
        """The file's place in the loras folder, where it is put unless it is there already. DiskError."""
        target = self._folder / file.name
        if file.is_file() and not _same(file, target):
            with whole_file(target, durable=False) as temporary:
                temporary.unlink()
                try:
                    os.link(file, temporary)
                except OSError:  # another disk, or one that has no links
                    shutil.copyfile(file, temporary)
        self._made[file] = target
        return target

    def finish(self) -> None:
        """Take away what the training has deleted since (save_last_n_steps, save_last_n_epochs)."""
        for file, target in self._made.items():
            if not file.exists():
                target.unlink(missing_ok=True)


def _same(file: Path, target: Path) -> bool:
    try:
        here, there = file.stat(), target.stat()
    except OSError:
        return False
    linked = os.path.samestat(here, there)
    return linked or (here.st_size == there.st_size and here.st_mtime_ns <= there.st_mtime_ns)
