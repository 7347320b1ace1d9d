"""`dataset check`: every problem of a dataset at once, and the table of its buckets. Writes nothing."""

from __future__ import annotations

from ..contract.errors import DataError
from ..contract.events import Control, Log, Say
from ..contract.job import Job
from ..contract.options import Data, DatasetTools
from ..contract.wording import counted
from ..data.clips import Window
from ..data.config import load_config
from ..data.preview import Cut, Inspection, bucket_table, inspect, render_table, whole
from ..families import part
from .showing import cut_of


def run(job: Job, say: Say, control: Control) -> str:
    """Raises DataError after all problems have been said."""
    inspection = inspected(job, say, control)
    if inspection.problems:
        raise DataError(
            f"{job[Data].dataset_config}: {counted(len(inspection.problems), 'problem')}, listed above.",
            "Correct them and check again; caching leaves out files that cannot be read.",
        )
    return summary(job, inspection)


def inspected(job: Job, say: Say, control: Control) -> Inspection:
    """Look at the whole dataset as the chosen family would, saying each problem and the table of buckets."""
    target_fps = part(job[DatasetTools].family, "options").NATIVE_FPS
    config = load_config(job[Data].dataset_config, say=say)
    cut = _cut_of(job)
    inspection = inspect(config, target_fps=target_fps, say=say, control=control, cut=cut)
    for problem in inspection.problems:
        say(Log(message=f"{problem.message} {problem.hint}".rstrip(), level="error"))
    if inspection.windows:
        for line in render_table(bucket_table(inspection.windows, cut=cut)).splitlines():
            say(Log(message=line))
    return inspection


def _cut_of(job: Job) -> Cut:
    """As the chosen family does it; an image stands for itself, since it is cached in a way of its own if in any."""
    of_video = cut_of(job[DatasetTools].family)

    def cut(window: Window) -> tuple[int, int]:
        return whole(window) if window.source.media == "image" else of_video(window)

    return cut


def summary(job: Job, inspection: Inspection) -> str:
    """One line about what is usable."""
    rows = bucket_table(inspection.windows, cut=_cut_of(job))
    items = counted(len({window.source.path for window in inspection.windows}), "item")
    clips, samples = len(inspection.windows), sum(row.samples for row in rows)
    cut = "" if samples == clips else f" cut into {counted(samples, 'section')}"
    buckets = counted(len({(row.width, row.height, row.frames) for row in rows}), "bucket")
    batches = counted(sum(row.batches for row in rows), "batch")
    return f"{items}, {counted(clips, 'clip')}{cut}, {buckets}, {batches} an epoch"
