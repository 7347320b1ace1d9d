"""`dataset preview`: the table of buckets and a contact sheet of the clips as training will see them."""

from __future__ import annotations

from pathlib import Path

from ..contract.errors import DataError
from ..contract.events import Control, Say
from ..contract.job import Job
from ..contract.options import Data, DatasetTools
from .dataset_check import inspected, summary
from .showing import draw_sheet


def run(job: Job, say: Say, control: Control) -> str:
    """Files that cannot be read are said and left out. Raises DataError when nothing is left to show."""
    options, config_path = job[DatasetTools], Path(job[Data].dataset_config)
    inspection = inspected(job, say, control)
    if not inspection.windows:
        first = inspection.problems[0]
        raise DataError(f"There is nothing to show: {first.message}", first.hint)
    default = config_path.with_name(f"{config_path.stem}_preview.png")
    faults = draw_sheet(
        inspection.windows,
        Path(options.sheet_path) if options.sheet_path else default,
        items=options.sheet_items,
        frames=options.sheet_frames,
        title=config_path.name,
        say=say,
    )
    broken = len(inspection.problems) + faults
    return summary(job, inspection) + (f"; {broken} problems, listed above" if broken else "")
