"""A dataset as it would be cached, shown instead of cached: `cache-latents --debug_mode …`. Loads no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..contract.cli import write_result
from ..contract.errors import DataError, OptionError
from ..contract.events import Artifact, Control, Log, Preview, Say, Stage
from ..contract.job import Job
from ..contract.options import LatentCaching, Run
from ..data.clips import Window
from ..data.config import DatasetConfig
from ..data.preview import Cut, draw_preview, inspect
from ..data.showing import draw_clips, write_clips
from ..families import part
from ..media.terminal import colour

SHEET_ITEMS, SHEET_FRAMES = 64, 4


def show(job: Job, config: DatasetConfig, say: Say, control: Control) -> str:
    """Show the clips in the way that the job asks for. Raises DataError when there is none."""
    options = job[LatentCaching]
    background = colour(options.console_back, flag="--console_back")
    if options.debug_mode == "console" and job[Run].events:
        raise OptionError("--debug_mode console draws in a terminal, but --events is given.", "Use image or video.")
    family = part(job.family, "options")
    cut = cut_of(str(job.family), **family.latent_settings(job))
    inspection = inspect(config, target_fps=family.NATIVE_FPS, say=say, control=control, cut=cut)
    for problem in inspection.problems:
        say(Log(message=f"{problem.message} {problem.hint}".rstrip(), level="error"))
    if not inspection.windows:
        raise DataError(f"There is nothing to show: {inspection.problems[0].message}", inspection.problems[0].hint)
    if options.debug_mode == "image":
        path = config.path.with_name(f"{config.path.stem}_preview.png")
        draw_sheet(inspection.windows, path, items=SHEET_ITEMS, frames=SHEET_FRAMES, title=config.path.name, say=say)
        return "Nothing was cached: --debug_mode image only draws."
    if options.debug_mode == "video":
        count, folders = write_clips(
            inspection.windows, architecture=family.ARCHITECTURE, fps=family.NATIVE_FPS, say=say, control=control
        )
        for folder in folders:
            say(Artifact(kind="clips", path=str(folder)))
        return f"Nothing was cached: --debug_mode video wrote {count} clips."
    count = draw_clips(
        inspection.windows,
        fps=family.NATIVE_FPS,
        width=options.console_width,
        background=background,
        most=options.console_num_images,
        write=write_result,
        say=say,
        control=control,
    )
    return f"Nothing was cached: --debug_mode console drew {count} of {len(inspection.windows)} clips."


def cut_of(family: str, **settings: Any) -> Cut:
    """What a family cuts a clip into, from its `sample_count`. `settings`: those of its `options.latent_settings`."""
    vae = part(family, "vae")

    def cut(window: Window) -> tuple[int, int]:
        section = window.source.dataset.fp_latent_window_size
        count = vae.sample_count(window.count, window=section, **settings)
        return (window.count, 1) if count is None or window.count == 1 else (section * vae.TIME_STRIDE, count)

    return cut


def draw_sheet(windows: Sequence[Window], path: Path, *, items: int, frames: int, title: str, say: Say) -> int:
    """Draw a contact sheet (data/preview.py) and say where it is; returns how many files could not be decoded."""
    say(Stage(name="Drawing the contact sheet"))
    path, faults = draw_preview(windows, path, items=items, frames=frames, title=title, say=say)
    for fault in faults:
        say(Log(message=f"{fault.message} {fault.hint}".rstrip(), level="error"))
    say(Artifact(kind="contact sheet", path=str(path)))
    say(Preview(path=str(path), label="contact sheet"))
    return len(faults)
