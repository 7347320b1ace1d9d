"""Which frames of a video become clips: frame-rate conversion first, then the five ways to cut windows.

Works on counts and times only; it never sees a picture. The windows and the index rule equal musubi-tuner's
(`frame_extraction`, `source_fps`). What differs on purpose: a video slower than the target rate repeats frames, so
that motion keeps its speed (musubi-tuner keeps every frame once, which plays too fast), and a video with a variable
frame rate is resampled by the times at which its frames are shown (musubi-tuner counts frames).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MODES = ("head", "chunk", "slide", "uniform", "full")
FRAME_STEP = 4  # every supported VAE takes 4n+1 frames

# A frame counts as shown at a tick when it appears at most this share of a tick later. It absorbs the rounding of
# container time stamps (1 ms in Matroska) and is far below anything that can be seen.
_TICK_TOLERANCE = 0.05
# The rate is constant when no frame is further than this share of a frame from an even grid.
_GRID_TOLERANCE = 0.25


def floor_frames(count: int) -> int:
    """The largest 4n+1 that is not above `count` (which is at least 1)."""
    return (count - 1) // FRAME_STEP * FRAME_STEP + 1


def windows(
    frame_count: int,
    *,
    mode: str,
    target_frames: Sequence[int] = (1,),
    stride: int = 1,
    sample: int = 1,
    max_frames: int = 129,
) -> list[tuple[int, int]]:
    """Cut a video of `frame_count` frames into windows `(first frame, number of frames)`.

    `target_frames` are 4n+1, sorted, without repeats (config.py sees to it). Every length gets its own windows; a
    length that the video does not reach gets none. `uniform` may give the same window twice when the video is short.
    Raises ValueError for an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"unknown frame extraction mode {mode!r}")
    if frame_count < 1:
        return []
    if mode == "full":
        return [(0, floor_frames(min(frame_count, max_frames)))]
    if mode == "uniform" and sample == 1:
        mode = "head"
    cut = []
    for length in target_frames:
        room = frame_count - length  # the last possible start
        if room < 0:
            continue
        if mode == "head":
            starts = [0]
        elif mode == "chunk":
            starts = range(0, room + 1, length)
        elif mode == "slide":
            starts = range(0, room + 1, stride)
        else:
            starts = np.linspace(0, room, sample).astype(int).tolist()
        cut.extend((start, length) for start in starts)
    return cut


def fewest_frames(*, mode: str, target_frames: Sequence[int]) -> int:
    """How many frames a video must have, at the target rate, to give any window at all."""
    return 1 if mode == "full" else min(target_frames)


def kept_by_index(
    count: int, *, source_fps: float, target_fps: float, start: int | None = None, end: int | None = None
) -> list[int]:
    """Frames that musubi-tuner keeps of a constant-rate video: the first one of each target frame.

    A running sum, not a product, decides, because the reference's does: at 24 to 16 frames a second its rounding
    keeps frame 7 where exact arithmetic keeps 6, and caches made by either tool should hold the same frames.
    `start` and `end` limit the *target* frames, `end` not included. A slower source loses nothing and repeats nothing.
    """
    advance = target_fps / source_fps
    kept, position, previous = [], 0.0, -1
    for index in range(count):
        target = int(position)
        position += advance
        if target == previous:
            continue
        previous = target
        if end is not None and target >= end:
            break
        if start is None or target >= start:
            kept.append(index)
    return kept


def kept_by_time(times_s: Sequence[float], *, target_fps: float) -> list[int]:
    """For each tick of the target rate, the first frame that is shown at or after it; frames may repeat.

    `times_s` are presentation times in seconds, ascending. The ticks start with the first frame and end with the last.
    """
    times = np.asarray(times_s, dtype=np.float64)
    if times.size == 0:
        return []
    times = times - times[0]
    ticks = np.arange(int(np.floor(times[-1] * target_fps + _TICK_TOLERANCE)) + 1)
    kept = np.searchsorted(times, (ticks - _TICK_TOLERANCE) / target_fps, side="left")
    return kept.clip(max=times.size - 1).tolist()  # the last tick may be rounded past the last frame


def constant_rate(times_s: Sequence[float]) -> float | None:
    """Frames a second when the frames are evenly spaced, else None (also for a single frame)."""
    times = np.asarray(times_s, dtype=np.float64)
    if times.size < 2 or times[-1] <= times[0]:
        return None
    step = (times[-1] - times[0]) / (times.size - 1)
    drift = np.abs(times - times[0] - step * np.arange(times.size)).max()
    return float(1 / step) if drift <= _GRID_TOLERANCE * step else None


def kept_frames(
    frames: int | Sequence[float], *, source_fps: float | None, target_fps: float | None
) -> list[int] | None:
    """Indices of the source frames that make up the video at the target rate; None means all, in order.

    `frames` is a count (a folder of images: no times are known) or presentation times in seconds, already on the
    clock that the dataset declares (see `declared_clock`). Nothing is resampled unless both rates are given.
    """
    if source_fps is None or target_fps is None:
        return None
    count = frames if isinstance(frames, int) else len(frames)
    even = isinstance(frames, int) or count < 2 or constant_rate(frames) is not None
    if not even:
        return kept_by_time(frames, target_fps=target_fps)
    if source_fps >= target_fps:
        return kept_by_index(count, source_fps=source_fps, target_fps=target_fps)
    return kept_by_time([index / source_fps for index in range(count)], target_fps=target_fps)


def same_rate(one: float, other: float) -> bool:
    """Whether two rates are taken for the same one: 29.97 for 30, say."""
    return abs(one / other - 1) <= 0.05


def declared_clock(times_s: Sequence[float], *, source_fps: float) -> tuple[Sequence[float], float | None]:
    """Times on the clock that `source_fps` declares, and the file's own rate where the two disagree (`same_rate`).

    A declared rate that agrees with either the mean or the usual (median) spacing of the frames leaves the times
    alone: a phone that drops frames has a mean below its nominal rate, and its times are right. Otherwise the
    declaration wins, since people set it where the container is wrong: all times are scaled by measured / declared.
    """
    times = np.asarray(times_s, dtype=np.float64)
    if times.size < 2 or times[-1] <= times[0]:
        return times_s, None
    mean = (times.size - 1) / (times[-1] - times[0])
    usual = 1 / max(float(np.median(np.diff(times))), 1e-9)
    if any(same_rate(rate, source_fps) for rate in (mean, usual)):
        return times_s, None
    return (times * (mean / source_fps)).tolist(), float(mean)
