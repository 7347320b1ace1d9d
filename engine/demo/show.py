"""What the demo leaves to look at: a contact sheet of what went in and what came out, and what the LoRA changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..media.sheet import contact_sheet, spread
from ..media.video import read_frames
from .prepare import Prepared

THUMBNAILS, THUMBNAIL = 5, 160  # how many, and pixels


def thumbnails(video: Path) -> list[np.ndarray]:
    """Some frames at even distances, first and last included; small ones enlarged by a whole number."""
    frames = list(read_frames(video))
    times = max(THUMBNAIL // max(frames[0].shape[:2]), 1)
    return [frames[index].repeat(times, axis=0).repeat(times, axis=1) for index in spread(len(frames), THUMBNAILS)]


def write_contact_sheet(prepared: Prepared, videos: list[Path]) -> Path:
    """Rows of the training clips and, last, of the generated videos, one for each prompt; returns the PNG's path."""
    clips = sorted(prepared.clips.glob("*.mp4"))
    rows = [(f"trained on: {clip.stem.replace('_', ' ')}", thumbnails(clip)) for clip in clips]
    generated = zip(prepared.kit.prompts, videos, strict=True)
    rows += [(f"generated: {prompt}", thumbnails(video)) for prompt, video in generated]
    return contact_sheet(rows, prepared.folder / "contact_sheet.png", thumbnail=THUMBNAIL)


def write_comparison(prepared: Prepared, videos: list[Path]) -> Path:
    """For each prompt the video without the LoRA (left) and with it (right), of one seed; returns the PNG's path."""
    without = newest_videos(prepared.without_lora, len(videos))
    rows = []
    for prompt, *pair in zip(prepared.kit.prompts, without, videos, strict=True):
        rows += [(f"{how}\n{prompt}", thumbnails(video)) for how, video in zip(("without", "with"), pair, strict=True)]
    title = f"Without and with the LoRA that learned {prepared.kit.concept}"
    return contact_sheet(rows, prepared.folder / "comparison.png", title=title, thumbnail=THUMBNAIL, columns=2)


def newest_videos(folder: Path, count: int) -> list[Path]:
    """The videos written last in a folder, in the order in which they were written; fewer when there are fewer."""
    return sorted(folder.glob("*.mp4"), key=lambda path: path.stat().st_mtime_ns)[-count:]
