"""`dataset check`: every problem of a dataset at once, and the table of its buckets. Writes nothing."""

from __future__ import annotations

from ..contract.errors import DataError
from ..contract.events import Control, Log, Say
from ..contract.job import Job
from ..contract.options import Data, DatasetTools
from ..data.config import load_config
from ..data.preview import Inspection, bucket_table, inspect, render_table
from ..families import part


def run(job: Job, say: Say, control: Control) -> str:
    """Raises DataError after all problems have been said."""
    inspection = inspected(job, say, control)
    if inspection.problems:
        count = len(inspection.problems)
        raise DataError(
            f"{job[Data].dataset_config}: {count} problem{'s' if count > 1 else ''}, listed above.",
            "Correct them and check again; caching leaves out files that cannot be read.",
        )
    return summary(inspection)


def inspected(job: Job, say: Say, control: Control) -> Inspection:
    """Look at the whole dataset as the chosen family would, saying each problem and the table of buckets."""
    target_fps = part(job[DatasetTools].family, "options").NATIVE_FPS
    config = load_config(job[Data].dataset_config, say=say)
    inspection = inspect(config, target_fps=target_fps, say=say, control=control)
    for problem in inspection.problems:
        say(Log(message=f"{problem.message} {problem.hint}".rstrip(), level="error"))
    if inspection.windows:
        for line in render_table(bucket_table(inspection.windows)).splitlines():
            say(Log(message=line))
    return inspection


def summary(inspection: Inspection) -> str:
    """One line about what is usable."""
    rows = bucket_table(inspection.windows)
    items = len({window.source.path for window in inspection.windows})
    buckets = len({(row.width, row.height, row.frames) for row in rows})
    batches = sum(row.batches for row in rows)
    return f"{items} items, {len(inspection.windows)} clips, {buckets} buckets, {batches} batches an epoch"
