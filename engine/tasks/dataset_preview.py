"""`dataset preview`: the table of buckets and a contact sheet of the clips as training will see them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..contract.errors import DataError
from ..contract.events import Artifact, Control, Log, Preview, Say, Stage
from ..contract.job import Job
from ..contract.options import Data, DatasetTools
from ..contract.wording import counted
from ..data.clips import Window
from ..data.config import contact_sheet_path
from ..data.preview import draw_preview
from .dataset_check import inspected, summary


def run(job: Job, say: Say, control: Control) -> str:
    """Files that cannot be read are said and left out. Raises DataError when nothing is left to show."""
    options, config_path = job[DatasetTools], Path(job[Data].dataset_config)
    inspection = inspected(job, say, control)
    if not inspection.windows:
        first = inspection.problems[0]
        raise DataError(f"There is nothing to show: {first.message}", first.hint)
    faults = draw_sheet(
        inspection.windows,
        Path(options.sheet_path) if options.sheet_path else contact_sheet_path(config_path),
        items=options.sheet_items,
        frames=options.sheet_frames,
        title=config_path.name,
        say=say,
    )
    broken = len(inspection.problems) + faults
    return summary(inspection) + (f"; {counted(broken, 'problem')}, listed above" if broken else "")


def draw_sheet(windows: Sequence[Window], path: Path, *, items: int, frames: int, title: str, say: Say) -> int:
    """Draw a contact sheet (data/preview.py) and say where it is; returns how many files could not be decoded."""
    say(Stage(name="Drawing the contact sheet"))
    path, faults = draw_preview(windows, path, items=items, frames=frames, title=title, say=say)
    for fault in faults:
        say(Log(message=f"{fault.message} {fault.hint}".rstrip(), level="error"))
    say(Artifact(kind="contact sheet", path=str(path)))
    say(Preview(path=str(path), label="contact sheet"))
    return len(faults)
