"""Showing clips as they would be cached, instead of caching them: in a terminal, or as files in the cache folder.

The clips are read and cut exactly as for caching. Knows no family: its short name and rate are handed in. Given up:
sound, and windows on a screen (`preview.py` draws contact sheets).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ..contract.errors import DataError, Stopped
from ..contract.events import Control, Meter, Say, Warning_
from ..media.images import write_image
from ..media.terminal import half_blocks, side_by_side
from ..media.writing import write_video
from . import cache, clips
from .clips import Clip, Window
from .report import reason_of

FOLDER = "shown"  # where the cache folder is the media's own, in which a written video would be taken for a clip


def write_clips(
    windows: Sequence[Window], *, architecture: str, fps: float, say: Say, control: Control
) -> tuple[int, list[Path]]:
    """Write each clip as `<name of its cache>.mp4`, an image as `.jpg`. Returns how many, and into which folders.

    `fps` is the rate of the videos and that to which sources are brought. DiskError; a source that cannot be read is a
    warning; Stopped when `control` asks for it.
    """
    meter = Meter(say, total=len(windows), unit="clips", label="writing")
    folders: dict[Path, None] = {}
    count = 0
    for clip in _read(windows, fps=fps, say=say, control=control):
        path = shown_path(clip.window, architecture)
        if clip.window.source.media == "image":
            write_image(path, clip.frames_FHWC[0])
        else:
            write_video(path, clip.frames_FHWC, fps=fps)
        folders[path.parent] = None
        count += 1
        meter.advance()
    meter.close()
    return count, list(folders)


def shown_path(window: Window, architecture: str) -> Path:
    """Where `write_clips` puts a clip: beside its cache, but never among the files that a dataset is made of."""
    source, path = window.source, cache.latent_path(window, architecture)
    folder = path.parent / FOLDER if path.parent.resolve() == source.path.parent.resolve() else path.parent
    return folder / (path.stem + (".jpg" if source.media == "image" else ".mp4"))


def draw_clips(
    windows: Sequence[Window],
    *,
    fps: float,
    width: int,
    background: tuple[int, int, int],
    most: int | None,
    write: Callable[[str], None],
    say: Say,
    control: Control,
) -> int:
    """Draw the first and the last frame of each clip, and its controls, `width` characters wide; returns how many.

    `most` clips of each dataset, None all. `write` puts text on the terminal. Otherwise as `write_clips`.
    """
    drawn: Counter[int] = Counter()
    shown = [window for window in windows if most is None or _counted(drawn, window) <= most]
    count = 0
    for clip in _read(shown, fps=fps, say=say, control=control):
        pictures = [picture for track in (clip.frames_FHWC, *clip.controls_FHWC) for picture in _ends(track)]
        row = side_by_side(pictures, width=width, background=background)
        write(f"{_label(clip)}\n{half_blocks(row, background=background)}\n")
        count += 1
    return count


def _counted(drawn: Counter[int], window: Window) -> int:
    drawn[window.source.dataset.index] += 1
    return drawn[window.source.dataset.index]


def _ends(track_FHWC: np.ndarray) -> list[np.ndarray]:
    return [track_FHWC[0], track_FHWC[-1]] if len(track_FHWC) > 1 else [track_FHWC[0]]


def _label(clip: Clip) -> str:
    window = clip.window
    width, height = window.bucket
    frames = "" if window.source.media == "image" else f", frames {window.start} to {window.end - 1}"
    controls = f", {len(clip.controls_FHWC)} controls" if clip.controls_FHWC else ""
    caption = " ".join(window.source.caption.split())
    return f"{window.source.dataset.table}  {window.source.path.name}  {width}x{height}{frames}{controls}\n{caption}"


def _read(windows: Sequence[Window], *, fps: float, say: Say, control: Control) -> Iterator[Clip]:
    """The clips of one source after the other."""
    for source, group in itertools.groupby(windows, key=lambda window: window.source):
        try:
            for clip in clips.read(list(group), target_fps=fps):
                if control.stop_requested:
                    raise Stopped("Stopped; the clips so far were shown.")
                yield clip
        except DataError as error:
            say(Warning_(message=f"Left out: {source.path.name}: {reason_of(error)}"))
