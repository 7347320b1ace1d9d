"""Trained LoRAs appear in ComfyUI's loras folder as soon as they are saved, and go when the training deletes them.

The training keeps its own folder with states, curves and samples, which no LoRA list should show; the LoRA files are
linked from there, or copied if the disk cannot link. Only files that are certainly ours are removed: a numbered one
that disappears from the training's folder during a training that keeps only the last few (save_last_n_steps,
save_last_n_epochs), and whose link or copy nobody has touched. A resumed training finds those of earlier runs in a
record in that folder. Given up: LoRAs whose files were deleted while no node was watching (ComfyUI was killed) stay,
since a person may have deleted the files.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

from ..engine.contract.errors import DiskError
from ..engine.contract.files import whole_file, write_text
from ..engine.contract.saved_names import is_numbered

RECORD = "published.json"
Stamp = list[int]


class Publisher:
    """Puts the LoRA files of one training into a folder."""

    def __init__(self, folder: Path, training: Path, *, deletes: bool = True):
        """`training`: the training's own folder, where earlier runs of it may have left files and a record.

        `deletes`: the training itself deletes files there.
        """
        self._folder, self._record, self._deletes = folder, training / RECORD, deletes
        self._made: dict[Path, Stamp] = {
            training / name: stamp
            for name, stamp in _read(self._record).items()
            if (training / name).is_file() and stamp == _stamp(folder / name)
        }

    def take(self, kind: str, path: str) -> None:
        """Take in a finished artifact of the run."""
        if kind == "LoRA":
            self.tidy()  # each time, so that little is left if ComfyUI is killed
            self.published(Path(path))

    def published(self, file: Path) -> Path:
        """Put the file into the loras folder, unless it is there already. Returns its path there. DiskError."""
        target = self._target(file)
        if file.is_file() and not _same(file, target):
            with whole_file(target, durable=False) as temporary:
                temporary.unlink()
                try:
                    os.link(file, temporary)
                except OSError:  # another disk, or one that has no links
                    shutil.copyfile(file, temporary)
        stamp = _stamp(target)
        if stamp and is_numbered(file.stem) and self._made.get(file) != stamp:
            self._made[file] = stamp
            self._keep_record()
        return target

    def tidy(self) -> None:
        """Remove what the training has deleted since, unless somebody has put another file in its place.

        Nothing is removed while its whole folder is gone (an unmounted disk). What cannot be deleted now is tried
        again.
        """
        if not self._deletes or not self._record.parent.is_dir():
            return
        gone = [file for file in self._made if not file.exists()]
        for file in gone:
            if self._made[file] == _stamp(self._target(file)):
                try:
                    self._target(file).unlink(missing_ok=True)
                except OSError:  # in use on Windows, or a read-only folder
                    continue
            del self._made[file]
        if gone:
            self._keep_record()

    def _keep_record(self) -> None:
        with suppress(DiskError):  # the LoRAs are in their place; without a record more of them stay there
            write_text(self._record, json.dumps({file.name: stamp for file, stamp in self._made.items()}))

    def _target(self, file: Path) -> Path:
        return self._folder / file.name


def _same(file: Path, target: Path) -> bool:
    try:
        here, there = file.stat(), target.stat()
    except OSError:
        return False
    linked = os.path.samestat(here, there)
    return linked or (here.st_size == there.st_size and here.st_mtime_ns <= there.st_mtime_ns)


def _read(record: Path) -> dict[str, Stamp]:
    """Name of a LoRA file -> stamp of what was published; empty if the record is damaged or missing."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    names = found if isinstance(found, dict) else {}
    return {name: stamp for name, stamp in names.items() if is_numbered(Path(name).stem) and Path(name).name == name}


def _stamp(target: Path) -> Stamp:
    """Numbers that change when a file is written or replaced; empty if there is no file."""
    try:
        found = target.stat()
    except OSError:
        return []
    return [found.st_ino, found.st_size, found.st_mtime_ns]
