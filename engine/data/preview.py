"""Looking at a dataset before anything is cached: every problem at once, the table of buckets, a contact sheet.

`inspect` probes all files and decodes of each video only its last needed frame (of an image all); damage in the middle
of a video shows when it is cached. Knows no family: the target rate is handed in, and what clips are cut into.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..contract.errors import DataError, Stopped
from ..contract.events import Control, Event, Meter, Say, Stage, Warning_
from ..contract.wording import counted
from ..media.resize import resize_to_bucket
from ..media.sheet import contact_sheet, spread
from . import advice
from .clips import Cut, Timeline, Window, plan, uncut
from .config import DatasetConfig
from .items import Source, survey

_THREADS = min(8, os.cpu_count() or 1)
_HEADINGS = ("dataset", "bucket", "frames", "samples", "repeats", "batch size", "batches an epoch")


@dataclass(frozen=True, kw_only=True)
class BucketRow:
    """One bucket of one dataset: samples of a size, from which batches are formed. Sizes in pixels."""

    dataset: int  # from 1, as in messages
    width: int
    height: int
    frames: int
    samples: int  # clips, or what they are cut into; each once
    repeats: int
    batch_size: int
    batches: int  # in an epoch, the last partial one included


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """All usable windows in the order of their datasets, the buckets they fall into, and all problems."""

    windows: tuple[Window, ...]
    rows: tuple[BucketRow, ...]
    problems: tuple[DataError, ...]


def inspect(
    config: DatasetConfig, *, target_fps: float | None, say: Say, control: Control | None = None, cut: Cut = uncut
) -> Inspection:
    """Find and probe every item of every dataset; a problem is collected, not raised. Raises Stopped when asked to.

    Windows of which `cut` makes nothing are left out, and are problems too, one for each length in a file.
    """
    problems: list[DataError] = []
    items: list[Source] = []
    say(Stage(name="Looking for files and captions"))
    for dataset in config.datasets:
        found, faults = survey(dataset)
        items.extend(found)
        problems.extend(faults)
        advice.on_empty_captions(found, dataset, say)
    advice.on_other_files({item.dataset.index: item.dataset for item in items}.values(), say)
    advice.on_equal_captions(items, say)
    if items:
        say(Stage(name="Probing", message=counted(len(items), "file")))
    meter = Meter(say, total=len(items), unit="files", label="probing")
    planned: list[Window] = []
    windows: list[Window] = []
    warned = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        jobs = [pool.submit(_probe, item, target_fps) for item in items]
        for job in jobs:
            if control is not None and control.stop_requested:
                pool.shutdown(wait=False, cancel_futures=True)
                raise Stopped("Stopped; nothing was written.")
            found, fault, said = job.result()
            usable, too_short = _usable(found, cut)
            warned += len(said)
            for event in said if warned <= advice.MOST else ():
                say(event)
            planned.extend(found)
            windows.extend(usable)
            problems.extend([*([fault] if fault else ()), *too_short])
            meter.advance()
    meter.close()
    if warned > advice.MOST:
        say(Warning_(message=f"{warned - advice.MOST} more files give such a warning."))
    advice.on_lengths(planned, say)
    advice.on_rates(planned, native_fps=target_fps, say=say)
    return Inspection(windows=tuple(windows), rows=tuple(bucket_table(windows, cut=cut)), problems=tuple(problems))


def _probe(item: Source, target_fps: float | None) -> tuple[list[Window], DataError | None, list[Event]]:
    """The windows of an item, or what is wrong with it; and what there was to say."""
    said: list[Event] = []
    try:
        planned = plan(item, target_fps=target_fps, say=said.append)
        last = max(window.end for window in planned) - 1
        for _ in planned[0].timeline.pictures([last]):  # can it be decoded up to there?
            pass
    except DataError as error:
        return [], error, said
    return planned, None, said


def _usable(windows: Sequence[Window], cut: Cut) -> tuple[list[Window], list[DataError]]:
    """Those windows of an item that can be trained on, and what is wrong with the others."""
    usable: list[Window] = []
    faults: dict[int, DataError] = {}
    for window in windows:
        try:
            cut(window)
        except DataError as error:
            what = f"{window.source.path}, {window.count} frames from frame {window.start}: {error.message}"
            faults.setdefault(window.count, DataError(what, error.hint))
        else:
            usable.append(window)
    return usable, list(faults.values())


def bucket_table(windows: Sequence[Window], *, cut: Cut = uncut) -> list[BucketRow]:
    """How the windows, or what they are cut into, fall into buckets, by dataset and size.

    Batches are formed within one bucket of one dataset.
    """
    counts: Counter[tuple[int, int, int, int]] = Counter()
    for window in windows:
        width, height = window.bucket
        frames, samples = cut(window) or (window.count, 1)
        counts[window.source.dataset.index, width, height, frames] += samples
    datasets = {window.source.dataset.index: window.source.dataset for window in windows}
    rows = []
    for (index, width, height, frames), samples in sorted(counts.items()):
        dataset = datasets[index]
        rows.append(
            BucketRow(
                dataset=index + 1,
                width=width,
                height=height,
                frames=frames,
                samples=samples,
                repeats=dataset.num_repeats,
                batch_size=dataset.batch_size,
                batches=math.ceil(samples * dataset.num_repeats / dataset.batch_size),
            )
        )
    return rows


def render_table(rows: Sequence[BucketRow]) -> str:
    """The table as text, columns aligned, with a line of totals."""
    cells = [
        (row.dataset, f"{row.width}x{row.height}", row.frames, row.samples, row.repeats, row.batch_size, row.batches)
        for row in rows
    ]
    cells.append(("all", "", "", sum(row.samples for row in rows), "", "", sum(row.batches for row in rows)))
    texts = [_HEADINGS, *(tuple(map(str, line)) for line in cells)]
    widths = [max(len(line[column]) for line in texts) for column in range(len(_HEADINGS))]
    return "\n".join(
        "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in texts
    )


def draw_preview(
    windows: Sequence[Window], path: Path, *, items: int, frames: int, title: str, say: Say
) -> tuple[Path, list[DataError]]:
    """Draw a contact sheet of at most `items` sources, the longest clip of each, `frames` thumbnails a clip.

    The pictures are as training sees them, cut to the bucket. Returns the path and the faults of files that could not
    be decoded. Raises DiskError.
    """
    longest: dict[Path, Window] = {}
    for window in windows:
        if window.source.path not in longest or window.count > longest[window.source.path].count:
            longest[window.source.path] = window
    every = list(longest.values())
    shown = [every[index] for index in spread(len(every), items)]
    clips = Counter(window.source.path for window in windows)
    meter = Meter(say, total=len(shown), unit="files", label="drawing")
    rows, faults = [], []
    for window in shown:
        try:
            rows.append((_label(window, clips[window.source.path]), _thumbnails(window, frames)))
        except DataError as error:
            faults.append(error)
        meter.advance()
    meter.close()
    of = f"{len(shown)} of " if len(shown) < len(every) else ""
    head = f"{title}: {of}{counted(len(every), 'item')}"
    return contact_sheet(rows, path, title=head), faults


def _label(window: Window, clips: int) -> str:
    width, height = window.bucket
    size = f"{width}x{height}" + (f", {window.count} frames" if window.source.media != "image" else "")
    many = f", {clips} clips" if clips > 1 else ""
    caption = " ".join(window.source.caption.split())
    return f"{window.source.path.name}  {size}{many}\n{caption}"


def _thumbnails(window: Window, frames: int) -> list[np.ndarray]:
    timeline: Timeline = window.timeline
    positions = [window.start + offset for offset in spread(window.count, frames)]
    return [resize_to_bucket(picture, window.bucket) for picture in timeline.pictures(positions)]
