"""Where a generated video goes and how it is written: as a video, as images, as a latent."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ..contract.events import Artifact, Say
from ..contract.options import Output
from ..media.latents import SUFFIX, output_stem
from ..media.writing import write_images, write_png, write_video

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".gif", ".webp")


def is_file_name(save_path: str | Path) -> bool:
    """Whether `--save_path` names a video file; everything else is a folder, also `out/v1.5`."""
    return Path(save_path).suffix.lower() in VIDEO_SUFFIXES


def folder_of(save_path: str | None) -> Path:
    """The folder that results go to."""
    path = Path(save_path or ".")
    return path.parent if is_file_name(path) else path


@dataclass(frozen=True)
class Result:
    """One result's place and what it says about itself. `source`: name of the latent file that it was decoded from.

    `name`: what the file is called, without ending, in the folder `--save_path`; otherwise time and seed are its name.
    """

    output: Output
    seed: int
    metadata: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    name: str = ""

    @cached_property
    def stem(self) -> Path:
        """The path to which endings are added. A file name given as `--save_path` is kept, unless it is taken."""
        given = Path(self.output.save_path or ".")
        if self.name:
            return given / self.name
        if not is_file_name(given):
            return output_stem(given, self.seed, source=self.source)
        stem, number = given.with_suffix(""), 0
        candidate = stem
        while _is_taken(candidate):
            number += 1
            candidate = stem.with_name(f"{stem.name}_{number}")
        return candidate

    @property
    def latent(self) -> Path:
        """The file of its latents."""
        return self.named(SUFFIX)

    def named(self, suffix: str) -> Path:
        path = self.stem.with_name(self.stem.name + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _is_taken(stem: Path) -> bool:
    name = _literal(stem.name)
    return any(stem.parent.glob(f"{name}.*")) or stem.with_name(stem.name + SUFFIX).exists()


def _literal(name: str) -> str:
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in name)


def write_pictures(result: Result, frames: Iterator[Tensor], *, as_images: bool, say: Say) -> Path:
    """Write frames (HWC uint8 RGB): a video, a folder of images, or one PNG where there is a single frame."""
    arrays = (frame.numpy() for frame in frames)
    first = next(arrays)
    second = next(arrays, None)
    if second is None:
        path = write_png(result.named(".png"), first, metadata=result.metadata)
        say(Artifact(kind="image", path=str(path)))
        return path
    rest = itertools.chain([first, second], arrays)
    if as_images:
        path = write_images(result.named(""), rest, metadata=result.metadata)[0].parent
        say(Artifact(kind="images", path=str(path)))
        return path
    output = result.output
    given = Path(output.save_path or "")
    suffix = given.suffix if is_file_name(given) else ".mp4"
    path = write_video(
        result.named(suffix),
        rest,
        fps=output.fps,
        codec=output.codec,
        crf=output.crf,
        preset=output.preset,
        pixel_format=output.pixel_format,
        bitrate=output.bitrate,
        metadata=result.metadata,
    )
    say(Artifact(kind="video", path=str(path)))
    return path
