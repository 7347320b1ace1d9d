"""`dataset check`: every problem of a dataset at once, and the table of its buckets. Writes nothing."""

from __future__ import annotations

from ..contract.errors import DataError
from ..contract.events import Control, Log, Say
from ..contract.job import Job
from ..contract.options import Data, DatasetTools
from ..contract.wording import counted
from ..data.clips import Window, family_cut
from ..data.config import load_config
from ..data.preview import Inspection, inspect, render_table
from ..families import part


def run(job: Job, say: Say, control: Control) -> str:
    """Raises DataError after all problems have been said."""
    inspection = inspected(job, say, control)
    if inspection.problems:
        raise DataError(
            f"{job[Data].dataset_config}: {counted(len(inspection.problems), 'problem')}, listed above.",
            "Correct them and check again; caching leaves out files that cannot be read.",
        )
    return summary(inspection)


def inspected(job: Job, say: Say, control: Control) -> Inspection:
    """Look at the whole dataset as the chosen family would, saying each problem and the table of buckets."""
    family = part(job[DatasetTools].family, "options")
    cut_video = family_cut(family.cut_clip)

    def cut(window: Window) -> tuple[int, int] | None:
        # An image counts as one sample: whether it can be cached depends on options of cache-latents, not known here.
        return None if window.source.media == "image" else cut_video(window)

    config = load_config(job[Data].dataset_config, say=say)
    inspection = inspect(config, target_fps=family.NATIVE_FPS, say=say, control=control, cut=cut)
    for problem in inspection.problems:
        say(Log(message=f"{problem.message} {problem.hint}".rstrip(), level="error"))
    if inspection.rows:
        for line in render_table(inspection.rows).splitlines():
            say(Log(message=line))
    return inspection


def summary(inspection: Inspection) -> str:
    """One line about what is usable."""
    rows = inspection.rows
    items = counted(len({window.source.path for window in inspection.windows}), "item")
    clips, samples = len(inspection.windows), sum(row.samples for row in rows)
    cut = "" if samples == clips else f" cut into {counted(samples, 'section')}"
    buckets = counted(len({(row.width, row.height, row.frames) for row in rows}), "bucket")
    batches = counted(sum(row.batches for row in rows), "batch", "batches")
    return f"{items}, {counted(clips, 'clip')}{cut}, {buckets}, {batches} an epoch"
