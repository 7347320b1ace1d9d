"""Reading of video files with PyAV: what is in a file, and its frames one by one.

`probe` walks the packets of the file and decodes one frame only (for its size and rotation). `read_frames` decodes
what is asked for and holds one frame at a time. Frames are counted in the order in which they are shown; rotation
metadata is applied. Knows nothing of datasets, buckets or target rates.

Given up: mirrored display matrices and non-square pixels are not applied (neither does musubi-tuner), and colours are
converted as swscale does by default.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import av
import numpy as np

from ..contract.errors import DataError

_DECODER_THREADS = 4  # a clip each on several threads is the caller's business; more here only adds memory
_SEEK_GAIN = 16  # frames: jumping ahead pays when it saves decoding at least so many
_UNORDERED = ("avi",)  # its stamps count packets, they do not say in which order frames are shown
_UNTIMED_RATE = 25.0  # frames a second assumed for a raw stream that states nothing


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoInfo:
    """What probe found. Sizes in pixels as shown, that is after rotation."""

    path: Path
    width: int
    height: int
    fps: float  # mean rate of the frames; the stated rate for a single frame or a file without time stamps
    frames: int  # frames that are really in the file
    times_s: np.ndarray  # float64, ascending, the first is 0
    rotation: int  # degrees counter-clockwise, 0 90 180 270, by which the stored picture is turned to be shown
    stamps: np.ndarray | None  # int64 presentation stamps, ascending; None when the file has no usable ones
    keyframes: np.ndarray  # int64 frame indices at which decoding can start, ascending

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height


def _broken(path: Path, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: there is no such video.", "Check the path where the video is named.")
    if isinstance(error, PermissionError):
        return DataError(f"{path}: the video may not be read (permission denied).", "Give yourself read access to it.")
    return DataError(
        f"{path}: this is not a video that can be read ({reason}).",
        "Replace the file (it may be incomplete or of another kind), or leave it out.",
    )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The open file and its video stream; every fault of the decoder inside the block becomes a DataError."""
    try:
        # An absolute path cannot be taken for a URL, and a playlist inside the file cannot reach the network.
        with av.open(os.path.abspath(path), options={"protocol_whitelist": "file"}) as container:
            yield container, _video_stream(container, path)
    except (av.FFmpegError, OSError) as error:
        raise _broken(path, error) from error


def _video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    kind = container.format.name
    if kind.endswith("_pipe") or kind in ("image2", "tty", "hls", "concat", "dash", "ico"):
        raise DataError(
            f"{path}: this is not a video but something else with a video's name (read as {kind}).",
            "Replace the file, or leave it out.",
        )
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        raise DataError(f"{path}: there is no video in this file (sound only?).", "Take it out of the dataset.")
    stream = streams[0]
    if stream.codec_context is None:
        raise DataError(f"{path}: this FFmpeg does not support its video codec.", "Convert the file to H.264.")
    stream.thread_type = "AUTO"
    stream.codec_context.thread_count = _DECODER_THREADS
    return stream


def _is_shown(packet: av.Packet, codec: str) -> bool:
    """Whether a packet gives a frame: not a flush, not cut off by an edit list, not VP8's hidden reference frame."""
    if packet.size == 0 or packet.is_discard:
        return False
    return codec != "vp8" or bool(bytes(memoryview(packet)[:1])[0] & 0x10)


def probe(path: str | Path) -> VideoInfo:
    """Size, rotation, number and times of the frames of a video, by reading its packets.

    Raises DataError when the file is missing, no video, empty, or holds less than its header says.
    """
    path = Path(path)
    with _opened(path) as (container, stream):
        time_base = float(stream.time_base or 0)
        rate = float(stream.average_rate or stream.guessed_rate or _UNTIMED_RATE)
        reorders = container.format.name in _UNORDERED
        shown, first = _packets(container, stream, path)
    if first is None or not shown:
        raise DataError(f"{path}: there is no frame in this video.", "Take it out of the dataset.")
    rotation = round(first.rotation / 90) * 90 % 360
    width, height = (first.height, first.width) if rotation in (90, 270) else (first.width, first.height)
    stamps = None if reorders else _usable([pts for pts, _, _ in shown])
    times_s = _times([dts for _, dts, _ in shown] if stamps is None else stamps, time_base, rate)
    order = None if stamps is None else np.argsort(stamps)
    span = float(times_s[-1])
    return VideoInfo(
        path=path,
        width=width,
        height=height,
        fps=(len(shown) - 1) / span if span > 0 else rate,
        frames=len(shown),
        times_s=times_s,
        rotation=rotation,
        stamps=None if stamps is None else stamps[order],
        keyframes=np.flatnonzero([shown[index][2] for index in order] if order is not None else [True]),
    )


_Shown = tuple[int | None, int | None, bool]  # presentation stamp, decoding stamp, keyframe


def _packets(
    container: av.container.InputContainer, stream: av.VideoStream, path: Path
) -> tuple[list[_Shown], av.VideoFrame | None]:
    """What each frame's packet says, in file order, and the first frame. Raises DataError for an incomplete file."""
    shown: list[_Shown] = []
    first: av.VideoFrame | None = None
    opening: int | None = None
    packets, end_s = 0, 0.0
    for packet in container.demux():
        if packet.pts is not None and packet.time_base:
            end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index != stream.index:
            continue
        if packet.dts is not None or packet.size:  # all but the flush packet at the end
            packets += 1
            opening = packet.pts if packets == 1 and packet.is_keyframe else opening
        if first is None:
            first = next((frame for frame in packet.decode() if isinstance(frame, av.VideoFrame)), None)
        # Pictures shown before the keyframe that opens the file refer to what was cut off: no decoder gives them.
        leading = opening is not None and packet.pts is not None and packet.pts < opening
        if not leading and _is_shown(packet, stream.codec_context.name):
            shown.append((packet.pts, packet.dts, packet.is_keyframe))
    if stream.frames > packets:
        missing = f"{packets} of its {stream.frames} frames can be read"
    elif container.format.name.startswith("matroska") and _falls_short(end_s, container.duration):
        missing = (
            f"it ends after {end_s:.1f} of {(container.duration or 0) / av.time_base:.1f} s, with {len(shown)} frames"
        )
    else:
        return shown, first
    raise DataError(
        f"{path}: the file is incomplete: {missing}.",
        "Copy or download the file again, or leave it out.",
    )


def _falls_short(end_s: float, duration: int | None) -> bool:
    """Whether the packets of a Matroska file end well before the duration that its header states."""
    stated_s = (duration or 0) / av.time_base
    return stated_s - end_s > max(0.5, 0.05 * stated_s)


def _usable(stamps: Sequence[int | None] | np.ndarray) -> np.ndarray | None:
    """The stamps as numbers, unless some are missing or repeated."""
    return None if None in list(stamps) or len(set(stamps)) < len(stamps) else np.asarray(stamps, dtype=np.int64)


def _times(stamps: Sequence[int | None] | np.ndarray, time_base: float, rate: float) -> np.ndarray:
    """Ascending times in seconds from 0; evenly spaced at `rate` when the stamps are of no use."""
    usable = _usable(stamps)
    if usable is None or not time_base:
        return np.arange(len(stamps)) / rate
    return (np.sort(usable) - usable.min()) * time_base


def read_frames(
    path: str | Path, *, indices: Sequence[int] | None = None, info: VideoInfo | None = None
) -> Iterator[np.ndarray]:
    """Frames one by one, each (height, width, 3) uint8 RGB 0..255, rotation applied.

    `indices` are ascending without repeats; None means all. Decoding starts at the keyframe before the first and
    ends with the last one; long gaps are jumped over. `info` saves a second probe. Raises DataError when a frame
    cannot be decoded, saying how many could.
    """
    path = Path(path)
    info = info or probe(path)
    wanted = list(range(info.frames)) if indices is None else list(indices)
    if not wanted:
        return
    for run in _runs(wanted, info):
        yield from _read_run(run, info)


def _runs(wanted: Sequence[int], info: VideoInfo) -> list[list[int]]:
    """Split what is wanted where jumping to a keyframe saves decoding."""
    runs = [[wanted[0]]]
    for previous, index in pairwise(wanted):
        if info.stamps is not None and _keyframe_before(index, info) >= previous + _SEEK_GAIN:
            runs.append([])
        runs[-1].append(index)
    return runs


def _keyframe_before(index: int, info: VideoInfo) -> int:
    position = int(np.searchsorted(info.keyframes, index, side="right")) - 1
    return int(info.keyframes[position]) if position >= 0 else 0


def _read_run(run: Sequence[int], info: VideoInfo) -> Iterator[np.ndarray]:
    start = _keyframe_before(run[0], info) if info.stamps is not None else 0
    given = 0
    for from_index in dict.fromkeys((start if start >= _SEEK_GAIN else 0, 0)):
        for image in _decode(run, info, from_index):
            given += 1
            yield image
        if given == len(run):
            return
        if given:  # part of it came: the rest is missing, jumping was not at fault
            break
    raise DataError(
        f"{info.path}: the video is damaged: frame {run[given]} of {info.frames} cannot be decoded.",
        "Replace the file, or leave it out.",
    )


def _decode(run: Sequence[int], info: VideoInfo, from_index: int) -> Iterator[np.ndarray]:
    """Decode from a keyframe up to the last wanted frame. Ends early when a wanted frame does not come."""
    position, counted = 0, from_index - 1
    with _opened(info.path) as (container, stream):
        if from_index:
            assert info.stamps is not None, "without them only the first frame counts as a keyframe"
            container.seek(int(info.stamps[from_index]), stream=stream, backward=True)
        try:
            for frame in container.decode(stream):
                if info.stamps is None or frame.pts is None:
                    counted += 1
                else:
                    counted = int(np.searchsorted(info.stamps, frame.pts, side="right")) - 1
                if counted > run[position]:
                    return
                if counted < run[position]:
                    continue
                if frame.is_corrupt:
                    raise DataError(
                        f"{info.path}: frame {counted} of {info.frames} is damaged.",
                        "Replace the file, or leave it out.",
                    )
                yield _upright(frame, info.rotation)
                position += 1
                if position == len(run):
                    return
        except av.FFmpegError as error:
            raise DataError(
                f"{info.path}: the video is damaged: {counted + 1} of its {info.frames} frames could be read "
                f"({error.strerror}).",
                "Replace the file, or leave it out.",
            ) from error


def _upright(frame: av.VideoFrame, rotation: int) -> np.ndarray:
    image = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(image, rotation // 90)) if rotation else image
