"""Writing of videos, animations and image folders: complete or not at all, with metadata.

Frames come one by one and only one is held (GIF and WebP excepted: Pillow keeps their compressed frames). Colours are
converted with the BT.709 matrix to limited range and tagged so. Metadata is one JSON object in the file's comment,
which every container keeps; `read_metadata` gives it back.
Knows nothing of latents or tasks. Given up: sound, HDR, hardware encoders.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..contract.errors import DataError, OptionError
from ..contract.files import whole_file, whole_folder, write_bytes
from .images import encoded

COMMENT = "comment"
_RGB_MATRIX = 0  # AVCOL_SPC_RGB
_PREVIEW_QUALITY = 75
_ACCURATE = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP


@dataclass(frozen=True)
class Codec:
    """One encoder and what it takes: the highest crf (None: it has none), and whether it has presets."""

    suffixes: tuple[str, ...]
    pixel_format: str
    crf: int | None
    presets: bool = True
    fixed: tuple[tuple[str, str], ...] = ()


CODECS: dict[str, Codec] = {
    "libx264": Codec((".mp4", ".mkv", ".mov"), "yuv420p", 51),
    "libx265": Codec((".mp4", ".mkv", ".mov"), "yuv420p", 51, fixed=(("x265-params", "log-level=error"),)),
    "libvpx-vp9": Codec((".webm", ".mkv", ".mp4"), "yuv420p", 63, presets=False, fixed=(("row-mt", "1"),)),
    "libsvtav1": Codec((".mp4", ".mkv", ".webm"), "yuv420p", 63),
    "prores_ks": Codec((".mov", ".mkv"), "yuv422p10le", None, presets=False, fixed=(("profile", "3"),)),
    "ffv1": Codec((".mkv",), "bgr0", None, presets=False, fixed=(("level", "3"), ("slicecrc", "1"))),
}
"""ProRes is the HQ profile; FFV1 in bgr0 keeps every RGB value exactly."""
ALIASES = {
    "h264": "libx264",
    "h265": "libx265",
    "hevc": "libx265",
    "vp9": "libvpx-vp9",
    "av1": "libsvtav1",
    "prores": "prores_ks",
}
ANIMATIONS = {".gif": "GIF", ".webp": "WEBP"}


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray] | np.ndarray,
    *,
    fps: float | Fraction,
    codec: str = "libx264",
    crf: int = 16,
    preset: str | None = None,
    pixel_format: str | None = None,
    bitrate: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write frames (each HWC uint8 RGB 0..255, all of one size; an FHWC array will do) as a video of any rate.

    The suffix chooses the container, or an animation for .gif and .webp (codec, crf … do not apply there). Chroma
    formats that need even sizes get the last column or row once more, so an odd video comes out one pixel larger.
    bitrate (bits a second) takes the place of crf; crf and preset reach encoders that have them. pixel_format None is
    the codec's own. Raises OptionError for combinations that cannot be, DataError when there is no frame or frames
    differ in size, DiskError when the file cannot be written; the old file at `path`, if any, then stays as it was.
    """
    path = Path(path)
    rate = _rate(fps)
    frame_iterator = _checked(frames, path)
    if path.suffix.lower() in ANIMATIONS:
        with whole_file(path) as temporary:
            _write_animation(temporary, frame_iterator, rate, path.suffix.lower(), metadata or {})
        return path
    encoding = _encoding(path, rate, ALIASES.get(codec, codec), crf, preset, pixel_format, bitrate)
    with whole_file(path) as temporary, _refusals(encoding):
        _encode(temporary, frame_iterator, path.suffix.lower(), encoding, metadata or {})
    return path


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata that `write_video` or `write_images` put into a file; empty when it holds none of ours."""
    path = Path(path)
    try:
        if path.suffix.lower() in (".png", *ANIMATIONS):
            with Image.open(path) as image:
                text = _image_comment(image)
        else:
            with av.open(str(path)) as container:
                tags = {key.lower(): value for key, value in container.metadata.items()}
                text = tags.get(COMMENT, "")
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def write_images(
    folder: str | Path, frames: Iterable[np.ndarray] | np.ndarray, *, metadata: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write frames (HWC uint8 RGB 0..255) as `<folder>/<folder's name>_000.png` …: all of them or none.

    Raises DataError when the folder already holds something, DiskError when it cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} already holds files.", hint="Choose an empty or new folder.")
    info = _png_info(metadata or {})
    names = []
    with whole_folder(folder) as temporary:
        for index, frame in enumerate(_checked(frames, folder)):
            names.append(f"{folder.name}_{index:03d}.png")
            (temporary / names[-1]).write_bytes(encoded(Image.fromarray(frame), "PNG", pnginfo=info))
    return [folder / name for name in names]


def write_png(path: str | Path, image_HWC: np.ndarray, *, metadata: Mapping[str, Any] | None = None) -> Path:
    """Write one image (uint8 RGB 0..255) with metadata, whole or not at all."""
    path = Path(path)
    with whole_file(path) as temporary:
        temporary.write_bytes(encoded(Image.fromarray(image_HWC), "PNG", pnginfo=_png_info(metadata or {})))
    return path


def write_preview(path: str | Path, frames_FHWC: np.ndarray, *, fps: float) -> Path:
    """Write small frames (uint8 RGB 0..255) for a look and no more: `path` with .webp, lossy and quick, or .png of one.

    The file is whole or not there, though it may be lost with the power. Raises DiskError.
    """
    first, *rest = (Image.fromarray(frame_HWC) for frame_HWC in frames_FHWC)
    more: dict[str, Any] = {}
    if rest:
        more = {"save_all": True, "append_images": rest, "duration": max(1, round(1000 / fps)), "loop": 0, "method": 0}
        more["quality"] = _PREVIEW_QUALITY
    path = Path(path).with_suffix(".webp" if rest else ".png")
    write_bytes(path, encoded(first, "WEBP" if rest else "PNG", **more), durable=False)
    return path


@dataclass(frozen=True)
class _Encoding:
    """What the encoder is told."""

    encoder: str
    rate: Fraction
    pixel_format: str
    bitrate: int | None
    options: dict[str, str]


def _encoding(
    path: Path,
    rate: Fraction,
    name: str,
    crf: int,
    preset: str | None,
    pixel_format: str | None,
    bitrate: int | None,
) -> _Encoding:
    """Check what was asked for and put it together. OptionError names what would be right."""
    codec = _codec(name, path)
    pixel_format = pixel_format or codec.pixel_format
    known = [possible.name for possible in av.Codec(name, "w").video_formats or []]
    if pixel_format not in known:
        raise OptionError(f"{name} cannot store pixels as {pixel_format}.", hint=f"It can: {', '.join(known)}.")
    if bitrate is not None and bitrate <= 0:
        raise OptionError(f"The bitrate is {bitrate}.", hint="Give bits per second, e.g. 8000000, or leave it out.")
    options = dict(codec.fixed)
    if codec.crf is not None and bitrate is None:
        if not 0 <= crf <= codec.crf:
            raise OptionError(f"The crf is {crf}.", hint=f"{name} takes 0 (best) to {codec.crf}.")
        options["crf"] = str(crf)
    if preset is not None and codec.presets:
        options["preset"] = preset
    return _Encoding(name, rate, pixel_format, bitrate, options)


def _encode(
    temporary: Path, frames: Iterator[np.ndarray], suffix: str, encoding: _Encoding, metadata: Mapping[str, Any]
) -> None:
    muxer = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}[suffix]
    # a .mov cuts its ordinary comment at 64 KiB, its tagged metadata it does not
    movflags = {".mp4": "+faststart", ".mov": "+faststart+use_metadata_tags"}.get(suffix)
    first = next(frames)
    pad = _padding(first, encoding.pixel_format)
    to_pixels = _Converter(encoding.pixel_format)
    with av.open(
        str(temporary), "w", format=muxer, container_options={"movflags": movflags} if movflags else {}
    ) as container:
        if metadata:
            container.metadata[COMMENT] = _json(metadata)
        stream = container.add_stream(encoding.encoder, rate=encoding.rate, options=encoding.options)
        stream.width, stream.height = first.shape[1] + pad[0], first.shape[0] + pad[1]
        stream.pix_fmt = encoding.pixel_format
        if encoding.bitrate is not None:
            stream.bit_rate = encoding.bitrate
        elif encoding.encoder == "libvpx-vp9":
            stream.bit_rate = 0  # constant quality: crf alone counts
        if encoding.encoder == "libx265" and suffix in (".mp4", ".mov"):
            stream.codec_tag = "hvc1"  # the tag that Apple's players ask for
        to_pixels.tag(stream.codec_context)
        for index, frame in enumerate(itertools.chain([first], frames)):
            picture = to_pixels(_padded(frame, pad))
            picture.pts, picture.time_base = index, 1 / encoding.rate
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


class _Converter:
    """RGB frames to an encoder's pixels: BT.709, limited range, and RGB formats as they are. Tags what it makes."""

    def __init__(self, pixel_format: str) -> None:
        self.pixel_format = pixel_format
        self.rgb = pixel_format.startswith(("bgr", "rgb", "gbr"))
        self.reformatter = VideoReformatter()

    def __call__(self, frame_HWC: np.ndarray) -> av.VideoFrame:
        picture = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")
        if self.rgb:
            picture = self.reformatter.reformat(picture, format=self.pixel_format)
        else:
            picture = self.reformatter.reformat(
                picture,
                format=self.pixel_format,
                dst_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
                interpolation=_ACCURATE,
            )
        self.tag(picture)
        return picture

    def tag(self, target: Any) -> None:
        """Say on a stream or picture which colours it holds."""
        target.color_primaries = ColorPrimaries.BT709
        target.color_trc = ColorTrc.BT709
        target.colorspace = _RGB_MATRIX if self.rgb else Colorspace.ITU709
        target.color_range = ColorRange.JPEG if self.rgb else ColorRange.MPEG


def _padding(frame_HWC: np.ndarray, pixel_format: str) -> tuple[int, int]:
    """Columns and rows to add so that the chroma planes come out even: 0 or 1 each."""
    known = av.VideoFormat(pixel_format)
    halved = known.chroma_width(2) == 1, known.chroma_height(2) == 1
    return frame_HWC.shape[1] % 2 * halved[0], frame_HWC.shape[0] % 2 * halved[1]


def _padded(frame_HWC: np.ndarray, pad: tuple[int, int]) -> np.ndarray:
    if any(pad):
        frame_HWC = np.pad(frame_HWC, ((0, pad[1]), (0, pad[0]), (0, 0)), mode="edge")
    return np.ascontiguousarray(frame_HWC)


def _write_animation(
    temporary: Path, frames: Iterator[np.ndarray], rate: Fraction, suffix: str, metadata: Mapping[str, Any]
) -> None:
    pictures = (Image.fromarray(frame) for frame in frames)
    more: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
    if metadata:
        more |= {"exif": _exif(metadata)} if suffix == ".webp" else {COMMENT: _json(metadata)}
    first = next(pictures)
    # a GIF counts time in 10 ms
    duration_ms = round(float(100 / rate)) * 10 if suffix == ".gif" else round(float(1000 / rate))
    animation = encoded(
        first,
        ANIMATIONS[suffix],
        save_all=True,
        append_images=pictures,
        duration=max(duration_ms, 10),
        loop=0,
        **more,
    )
    temporary.write_bytes(animation)


_EXIF_DESCRIPTION = 0x010E


def _exif(metadata: Mapping[str, Any]) -> bytes:
    exif = Image.Exif()
    exif[_EXIF_DESCRIPTION] = _json(metadata, ascii_only=True)
    return exif.tobytes()


def _image_comment(image: Image.Image) -> str:
    found = image.info.get(COMMENT) or image.getexif().get(_EXIF_DESCRIPTION) or ""
    return found.decode("utf-8", "replace") if isinstance(found, bytes) else str(found)


def _png_info(metadata: Mapping[str, Any]) -> PngInfo:
    info = PngInfo()
    if metadata:
        info.add_itxt(COMMENT, _json(metadata), zip=False)
    return info


def _json(metadata: Mapping[str, Any], *, ascii_only: bool = False) -> str:
    return json.dumps(dict(metadata), ensure_ascii=ascii_only, sort_keys=False, default=str)


def _checked(frames: Iterable[np.ndarray] | np.ndarray, path: Path) -> Iterator[np.ndarray]:
    """The frames one by one, each known to be HWC uint8 and as large as the first."""
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise DataError(f"{path}: there is no frame to write.")
    size = np.shape(first)
    if len(size) != 3 or size[2] != 3 or 0 in size:
        raise DataError(f"{path}: frames must be height × width × 3, the first is {size}.")
    return _same_size(itertools.chain([first], iterator), size, path)


def _same_size(frames: Iterable[np.ndarray], size: tuple[int, ...], path: Path) -> Iterator[np.ndarray]:
    for index, frame in enumerate(frames):
        frame = np.asarray(frame)
        if frame.shape != size or frame.dtype != np.uint8:
            raise DataError(f"{path}: frame {index} is {frame.dtype} {frame.shape}, expected uint8 {size}.")
        yield frame


def _rate(fps: float | Fraction) -> Fraction:
    """The frame rate as a fraction; 23.976 and its like become exactly n·1000/1001."""
    if not 0 < fps <= 1000:
        raise OptionError(f"The frame rate is {fps}.", hint="Give --fps a number above 0 and up to 1000.")
    if isinstance(fps, Fraction):
        return fps
    broadcast = Fraction(round(fps * 1.001) * 1000, 1001)
    if float(fps) != round(fps) and abs(float(broadcast) - fps) < 0.005:
        return broadcast
    return Fraction(fps).limit_denominator(10_000)


def _codec(name: str, path: Path) -> Codec:
    if name not in CODECS:
        raise OptionError(f"There is no codec {name!r}.", hint=f"Choose from {', '.join(CODECS)}.")
    try:
        av.Codec(name, "w")
    except av.codec.codec.UnknownCodecError:
        raise OptionError(f"This build of PyAV has no encoder {name}.", hint="Choose libx264.") from None
    chosen = CODECS[name]
    if path.suffix.lower() not in chosen.suffixes:
        raise OptionError(
            f"{name} cannot be stored in {path.suffix or 'a file without a suffix'}.",
            hint=f"Name the file {' or '.join(path.stem + suffix for suffix in chosen.suffixes)}.",
        )
    return chosen


@contextmanager
def _refusals(encoding: _Encoding) -> Iterator[None]:
    """What an encoder will not do becomes an OptionError with the settings it was given."""
    try:
        yield
    except av.error.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        told = ", ".join(f"{name} {value}" for name, value in encoding.options.items())
        raise OptionError(
            f"The encoder {encoding.encoder} refused ({error.strerror}): {encoding.pixel_format}, {told}.",
            hint="Change codec, preset, pixel format or the size of the video.",
        ) from error
