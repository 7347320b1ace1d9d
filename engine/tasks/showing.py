"""A dataset as it would be cached, shown instead of cached: `cache-latents --debug_mode …`. Loads no model."""

from __future__ import annotations

from ..contract.cli import write_result
from ..contract.errors import DataError, OptionError
from ..contract.events import Artifact, Control, Log, Say
from ..contract.job import Job
from ..contract.options import LatentCaching, Run
from ..contract.wording import counted
from ..data.clips import family_cut
from ..data.config import DatasetConfig, contact_sheet_path
from ..data.preview import inspect
from ..data.showing import draw_clips, write_clips
from ..families import part
from ..media.terminal import colour
from .dataset_preview import draw_sheet

SHEET_ITEMS, SHEET_FRAMES = 64, 4


def show(job: Job, config: DatasetConfig, say: Say, control: Control) -> str:
    """Show the clips in the way that the job asks for. Raises DataError when there is none."""
    options = job[LatentCaching]
    background = colour(options.console_back, flag="--console_back")
    if options.debug_mode == "console" and job[Run].events:
        raise OptionError("--debug_mode console draws in a terminal, but --events is given.", "Use image or video.")
    family = part(job.family, "options")
    cut = family_cut(family.cut_clip, **family.latent_settings(job))
    inspection = inspect(config, target_fps=family.NATIVE_FPS, say=say, control=control, cut=cut)
    for problem in inspection.problems:
        say(Log(message=f"{problem.message} {problem.hint}".rstrip(), level="error"))
    if not inspection.windows:
        raise DataError(f"There is nothing to show: {inspection.problems[0].message}", inspection.problems[0].hint)
    if options.debug_mode == "image":
        path = contact_sheet_path(config.path)
        draw_sheet(inspection.windows, path, items=SHEET_ITEMS, frames=SHEET_FRAMES, title=config.path.name, say=say)
        return "Nothing was cached: --debug_mode image only draws."
    if options.debug_mode == "video":
        count, folders = write_clips(
            inspection.windows, architecture=family.ARCHITECTURE, fps=family.NATIVE_FPS, say=say, control=control
        )
        for folder in folders:
            say(Artifact(kind="clips", path=str(folder)))
        return f"Nothing was cached: --debug_mode video wrote {counted(count, 'clip')}."
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
