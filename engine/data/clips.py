"""From a source to its clips: planning (which windows, which bucket) and reading (decode once, stream, resize).

Planning reads packets and headers, not pictures. Reading keeps only the frames that windows still open need, so memory
does not grow with the length of the video; every frame is brought to the bucket's size as soon as it is decoded.
Knows no family: the target rate is handed in. Given up: alpha channels of anything but the controls of images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..contract.errors import DataError
from ..contract.events import Say, Warning_
from ..media import images, video
from ..media.resize import resize_to_bucket
from . import buckets, frames
from .config import Dataset
from .items import Source, frame_files

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Timeline:
    """One file or folder of images at the target rate: what planning learnt and reading uses. Sizes (width, height)."""

    path: Path
    size: Size
    frames: int  # at the target rate
    kept: Sequence[int] | None  # source frame of each frame at the target rate; None: all, in order
    info: video.VideoInfo | None = None  # of a video file
    files: tuple[Path, ...] = ()  # of an image, or a folder of images

    def pictures(self, positions: Sequence[int]) -> Iterator[np.ndarray]:
        """The pictures at ascending positions of the timeline (repeats allowed), uint8 RGB, at the file's size."""
        wanted = positions if self.kept is None else [self.kept[position] for position in positions]
        unique = list(dict.fromkeys(wanted))
        if self.info is None:
            found = (images.read_image(self.files[index]) for index in unique)
        else:
            found = video.read_frames(self.path, indices=unique, info=self.info)
        shown = -1
        for index in wanted:
            if index != shown:
                shown, picture = index, next(found)
            yield picture


@dataclass(frozen=True, kw_only=True)
class Window:
    """A piece of one source: `count` frames from frame `start`, counted at the target rate. Sizes (width, height)."""

    source: Source
    start: int
    count: int
    bucket: Size  # what its frames are brought to
    original: Size  # what the file has, rotation applied
    timeline: Timeline | None = field(default=None, compare=False, repr=False)  # saves reading a second probe

    @property
    def end(self) -> int:
        """First frame after the window."""
        return self.start + self.count


Cut = Callable[[Window], tuple[int, int] | None]
"""What a window is cut into for training: (pixel frames of a sample, how many samples), numbered in the names of their
caches; None: it is one sample, not numbered. DataError if it is too short for any."""


def uncut(window: Window) -> None:
    """What most families train on: the window as it is."""


def family_cut(cut_clip: Callable[..., tuple[int, int] | None], **settings: Any) -> Cut:
    """From a family's `options.cut_clip`. `settings`: those of its `options.latent_settings`."""

    def cut(window: Window) -> tuple[int, int] | None:
        return cut_clip(window.count, window=window.source.dataset.fp_latent_window_size, **settings)

    return cut


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """A window with its pictures, uint8 RGB 0..255: frames at the bucket's size, each control at its own size.

    `alphas_HW` belongs to the controls of an image, uint8 0..255; None where a control has no alpha channel.
    """

    window: Window
    frames_FHWC: np.ndarray
    controls_FHWC: tuple[np.ndarray, ...] = ()
    alphas_HW: tuple[np.ndarray | None, ...] = ()


def open_timeline(
    path: Path, media: str, *, source_fps: float | None, target_fps: float | None, say: Say | None = None
) -> Timeline:
    """Look at an image, a video file or a folder of images without decoding it. Raises DataError."""
    if media == "image":
        return Timeline(path=path, size=images.image_size(path), frames=1, kept=None, files=(path,))
    if media == "frames":
        files = frame_files(path)
        kept = frames.kept_frames(len(files), source_fps=source_fps, target_fps=target_fps)
        size = images.image_size(files[0])
        return Timeline(path=path, size=size, frames=len(files if kept is None else kept), kept=kept, files=files)
    info = video.probe(path)
    kept = None
    if source_fps is not None and target_fps is not None:
        times_s, measured = frames.declared_clock(info.times_s, source_fps=source_fps)
        if measured is not None and say is not None:
            say(Warning_(message=_rate_message(path, measured, source_fps)))
        kept = frames.kept_frames(times_s, source_fps=source_fps, target_fps=target_fps)
    return Timeline(path=path, size=info.size, frames=info.frames if kept is None else len(kept), kept=kept, info=info)


def _rate_message(path: Path, measured: float, declared: float) -> str:
    return (
        f"{path}: the file runs at {measured:.4g} frames a second, the dataset declares source_fps = {declared:.4g}. "
        f"The declared rate is used (times are scaled by {measured / declared:.4g}); "
        f"if the file is right, set source_fps = {measured:.4g} or put such files into a dataset of their own."
    )


def _timeline_of(source: Source, target_fps: float | None, say: Say | None = None) -> Timeline:
    rate = source.dataset.source_fps
    return open_timeline(source.path, source.media, source_fps=rate, target_fps=target_fps, say=say)


def frames_needed(dataset: Dataset) -> int:
    """The fewest frames, at the target rate, of which a video of this dataset gives any clip."""
    return frames.fewest_frames(mode=dataset.frame_extraction, target_frames=dataset.target_frames)


def plan(source: Source, *, target_fps: float | None, say: Say | None = None) -> list[Window]:
    """The windows of a source, without repeats. Decodes nothing but a video's first frame.

    `target_fps` is the family's native rate; it matters only when the dataset sets `source_fps`. `say` gets a warning
    when the declared rate and the file's differ by over 5 %. Raises DataError when the file cannot be read, or is too
    short for any window.
    """
    dataset = source.dataset
    timeline = _timeline_of(source, target_fps, say)
    bucket = buckets.choose_bucket(
        timeline.size,
        resolution=dataset.resolution,
        enable_bucket=dataset.enable_bucket,
        no_upscale=dataset.bucket_no_upscale,
    )
    cut = [(0, 1)]
    if source.media != "image":
        cut = frames.windows(
            timeline.frames,
            mode=dataset.frame_extraction,
            target_frames=dataset.target_frames,
            stride=dataset.frame_stride,
            sample=dataset.frame_sample,
            max_frames=dataset.max_frames,
        )
    if not cut:
        at_rate = "" if timeline.kept is None else f" at {target_fps:g} frames a second"
        raise DataError(
            f"{source.path}: too short: it needs at least {frames_needed(dataset)} frames{at_rate} "
            f"and has {timeline.frames}.",
            f"Take it out of the dataset, or add a smaller number to target_frames in {dataset.table}.",
        )
    return [
        Window(source=source, start=start, count=count, bucket=bucket, original=timeline.size, timeline=timeline)
        for start, count in dict.fromkeys(cut)
    ]


def read(windows: Sequence[Window], *, target_fps: float | None) -> Iterator[Clip]:
    """Clips of the windows of ONE source, each as soon as its last frame is decoded (in order of their ends).

    The source, and each control, is decoded once, from near the first frame needed to the last. In memory at a time:
    the frames that open windows share, and the clip being handed out. Raises DataError when a file cannot be decoded
    or has changed since it was planned.
    """
    if not windows:
        return
    source = windows[0].source
    if any(window.source != source or window.bucket != windows[0].bucket for window in windows):
        raise ValueError("read() takes the windows of one source, all of one bucket")
    ordered = sorted(windows, key=lambda window: (window.end, window.start))
    timeline = windows[0].timeline or _timeline_of(source, target_fps)
    if ordered[-1].end > timeline.frames:
        raise DataError(
            f"{source.path}: the file has changed: it had {ordered[-1].end} frames or more and has {timeline.frames}.",
            "Start again, so that its clips are planned afresh.",
        )
    spans = [(window.start, window.end) for window in ordered]
    tracks = [_cut(timeline, spans, windows[0].bucket)]
    for path in source.controls:
        control = open_timeline(
            path, _media_of(path, source), source_fps=source.dataset.source_fps, target_fps=target_fps
        )
        tracks.append(_cut(control, spans, _control_bucket(source, control.size, windows[0].bucket)))
    for window, *tracked in zip(ordered, *tracks, strict=True):
        controls = tuple(tracked[1:])
        yield Clip(window=window, frames_FHWC=tracked[0], controls_FHWC=controls, alphas_HW=_alphas(source, controls))


def _alphas(source: Source, controls_FHWC: Sequence[np.ndarray]) -> tuple[np.ndarray | None, ...]:
    """The alpha channels of an image's controls, brought to size as these were."""
    if source.media != "image":
        return ()
    found = [images.read_alpha(path) for path in source.controls]
    sizes = [(control.shape[2], control.shape[1]) for control in controls_FHWC]
    pairs = zip(found, sizes, strict=True)
    return tuple(None if alpha is None else resize_to_bucket(alpha, size) for alpha, size in pairs)


def _media_of(path: Path, source: Source) -> str:
    """What a control is: that of an image is an image, that of a video a video or a folder of images."""
    if source.media == "image":
        return "image"
    return "frames" if os.path.isdir(path) else "video"


def _control_bucket(source: Source, size: Size, bucket: Size) -> Size:
    """The size of a control: the clip's own, unless the (image) dataset asks for something else."""
    dataset = source.dataset
    limit = dataset.control_resolution
    if dataset.no_resize_control and (limit is None or size[0] * size[1] <= limit[0] * limit[1]):
        return tuple(max(buckets.floor_to(side), buckets.STEP) for side in size)
    return buckets.fit_size(limit, size) if limit else bucket


def _cut(timeline: Timeline, spans: Sequence[tuple[int, int]], bucket: Size) -> Iterator[np.ndarray]:
    """One array (frames, height, width, 3) for each span `(start, end)`, which are sorted by their ends.

    A position after the last frame gives the last frame again (only controls may be shorter than their video).
    """
    last = timeline.frames - 1
    positions = _covered(spans)
    earliest = list(np.minimum.accumulate([start for start, _ in reversed(spans)])[::-1])  # of this span and later ones
    held: dict[int, np.ndarray] = {}
    done = 0
    pictures = timeline.pictures([min(position, last) for position in positions])
    for position, picture in zip(positions, pictures, strict=True):
        if position > last and position - 1 in held:
            held[position] = held[position - 1]
        else:
            held[position] = resize_to_bucket(picture, bucket)
        while done < len(spans) and spans[done][1] - 1 == position:
            start, end = spans[done]
            yield np.stack([held[index] for index in range(start, end)])
            done += 1
            needed_from = earliest[done] if done < len(spans) else position + 1
            for index in [index for index in held if index < needed_from]:
                del held[index]


def _covered(spans: Sequence[tuple[int, int]]) -> list[int]:
    """All positions that any of the spans holds, ascending, each once."""
    positions: list[int] = []
    for start, end in sorted(spans):
        positions.extend(range(max(start, positions[-1] + 1) if positions else start, end))
    return positions
