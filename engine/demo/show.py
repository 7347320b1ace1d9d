"""What the demo leaves to look at: a contact sheet of what went in and what came out, and where everything is."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..media.sheet import contact_sheet, spread
from ..media.video import read_frames
from .prepare import Prepared

THUMBNAILS = 5


def thumbnails(video: Path) -> list[np.ndarray]:
    """Some frames at even distances, first and last included."""
    frames = list(read_frames(video))
    return [frames[index] for index in spread(len(frames), THUMBNAILS)]


def write_contact_sheet(prepared: Prepared, video: Path) -> Path:
    """Rows of the training clips and, last, of the generated video; returns the PNG's path."""
    clips = sorted(prepared.clips.glob("*.mp4"))
    rows = [(f"trained on: {clip.stem.replace('_', ' ')}", thumbnails(clip)) for clip in clips]
    rows.append((f"generated: {video.name}", thumbnails(video)))
    return contact_sheet(rows, prepared.folder / "contact_sheet.png")


def newest_video(folder: Path) -> Path | None:
    """The video written last in a folder, None when there is none."""
    found = sorted(folder.glob("*.mp4"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None
