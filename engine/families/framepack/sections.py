"""How a FramePack video is made of sections: counts, orders, and the places in time of latent frames. Pure functions.

A section is a window of latent frames (9 in the published models) that is denoised at once, beside history: the
newest frame as it is (1x), two before it with patches twice as large (2x), sixteen before those four times (4x).
The first release ("plain") makes the last section first and sees what follows; F1 goes forward in time.

    plain      [start] [blank: padding windows] [window] [1x] [2x 2x] [4x …16]     clean = start, 1x
    F1         [start] [4x …16] [2x 2x] [1x] [window]                              clean = start, 1x
    one frame  any places for the target and the control images, and history of zeros behind the window

Also the text syntax that says which prompt, image, padding or place goes where.
Formats: musubi-tuner 30c658c4. Knows no tensors, no model and no files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ...contract.errors import DataError, OptionError
from ...parts.hunyuan_vae_public import TIME_STRIDE

WINDOW = 9
"""Latent frames in a section of the published models (--latent_window_size)."""
HISTORY = (1, 2, 16)
"""Latent frames of history at 1x, 2x and 4x."""
HISTORY_FRAMES = sum(HISTORY)
FRAMES_PER_SECOND = 30
"""Seconds are turned into sections at this rate, whatever the rate of the finished file."""

PLAIN_HISTORY = (slice(0, 1), slice(1, 3), slice(3, 19))
"""Where 1x, 2x and 4x lie in latents of which the first are the newest that were made."""
F1_HISTORY = (slice(-1, None), slice(-3, -1), slice(-19, -3))
"""Where 1x, 2x and 4x lie in latents of which the last are the newest that were made."""

T = TypeVar("T")


# ----------------------------------------------------------------------------------------------------------- counts


def sections_in(latent_frames: int, *, window: int = WINDOW, source: str = "This clip") -> int:
    """How many whole sections a clip has after its first latent frame. DataError when there is none."""
    count = (latent_frames - 1) // window
    if count < 1:
        frames, least = (latent_frames - 1) * TIME_STRIDE + 1, window * TIME_STRIDE + 1
        raise DataError(
            f"{source} has {frames} frames ({latent_frames} latent frames), but a FramePack section needs {least}.",
            f"Use clips of {least} frames or more (target_frames in the dataset file), or a smaller "
            "fp_latent_window_size.",
        )
    return count


def cut_clip(
    frames: int, *, window: int, f1: bool = False, one_frame: bool = False, no_2x: bool = False, no_4x: bool = False
) -> tuple[int, int]:
    """What a clip of so many pixel frames is cut into for training: the frames of a section and how many there are, or
    one of one frame with `one_frame`. DataError when it is too short."""
    if one_frame:
        if frames != 1:
            raise DataError("--one_frame takes images, and this is a video.", "Use a dataset with image_directory.")
        return 1, 1
    section = TIME_STRIDE * window
    if frames == 1:
        raise DataError(
            "An image has no sections, and FramePack trains on sections of videos.",
            f"Use clips of {section + 1} frames or more, or --one_frame for single images.",
        )
    return section, sections_in((frames - 1) // TIME_STRIDE + 1, window=window)


def frames_used(latent_frames: int, *, window: int = WINDOW) -> int:
    """The latent frames that a clip's sections take: the start and whole windows. The rest is not trained on."""
    return sections_in(latent_frames, window=window) * window + 1


def sections_wanted(*, seconds: float, sections: int | None = None, window: int = WINDOW) -> int:
    """How many sections to make. `sections` wins over `seconds`; there is always at least one.

    musubi-tuner turns a number of sections into seconds and back, and comes out wrong when --fps is not 30.
    """
    if sections is not None:
        if sections < 1:
            raise OptionError(f"--video_sections {sections}: a video has at least one section.", "Give 1 or more.")
        return sections
    return max(round(seconds * FRAMES_PER_SECOND / (TIME_STRIDE * window)), 1)


def section_pixel_frames(window: int = WINDOW) -> int:
    """The pixel frames of one section's latents when they stand alone."""
    return TIME_STRIDE * window - (TIME_STRIDE - 1)


# ------------------------------------------------------------------------------------------------------------ order


@dataclass(frozen=True)
class Section:
    """One section in the order of making. `index` counts from the video's start, `from_end` is -1 for its last."""

    index: int
    from_end: int
    padding: int  # windows between the start frame and this one, as the model is told

    @property
    def starts_video(self) -> bool:
        return self.index == 0

    def first_frame(self, window: int = WINDOW) -> int:
        """The place of the section's first latent frame in the video; the start frame is at 0."""
        return 1 + self.index * window


def plan(sections: int, *, f1: bool = False, paddings: Sequence[int] = ()) -> list[Section]:
    """The sections in the order in which they are made, trained on or generated. `paddings`: see `latent_paddings`."""
    if f1:
        return [Section(index, index - sections, 0) for index in range(sections)]
    schedule = latent_paddings(sections, override=paddings)
    return [Section(sections - 1 - made, -1 - made, padding) for made, padding in enumerate(schedule)]


def latent_paddings(sections: int, *, override: Sequence[int] = ()) -> list[int]:
    """Windows between start and section, for each section in the order of making (the last in time first).

    Counting down to 0; of more than four sections the middle ones are all told 2, after one 3. `override` replaces
    from the front, as --latent_paddings; what is left of the default follows, what is too much is cut off.
    """
    default = list(range(sections - 1, -1, -1))
    if sections > 4:
        default = [3, *[2] * (sections - 3), 1, 0]
    given = list(override)[:sections]
    return given + default[len(given) :]


def parse_paddings(text: str) -> tuple[int, ...]:
    """`--latent_paddings 3,2,1,0`. OptionError for anything but whole numbers from 0 on."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise OptionError(
            f"--latent_paddings {text!r} is not a list of whole numbers from 0 on.",
            "Give one for each section, the last in time first, e.g. --latent_paddings 3,2,1,0.",
        )
    return tuple(int(part) for part in parts)


# ----------------------------------------------------------------------------------------------------------- places


@dataclass(frozen=True)
class Layout:
    """Places in time: of the section's latent frames and of its history. Empty: that part does not exist."""

    target: tuple[int, ...]
    clean: tuple[int, ...]
    clean_2x: tuple[int, ...] = ()
    clean_4x: tuple[int, ...] = ()


def plain_layout(padding: int, *, window: int = WINDOW) -> Layout:
    """The first release: start at 0, `padding` windows left blank, the window, then what follows it in time."""
    _, _, target, newest, middle, oldest = _runs(1, padding * window, window, *HISTORY)
    return Layout(target, (0, *newest), middle, oldest)


def f1_layout(*, window: int = WINDOW) -> Layout:
    """F1: start at 0, what comes before the window with the oldest first, the window."""
    _, oldest, middle, newest, target = _runs(1, *reversed(HISTORY), window)
    return Layout(target, (0, *newest), middle, oldest)


def one_frame_layout(
    target_index: int,
    clean_indices: Sequence[int],
    *,
    window: int = WINDOW,
    no_2x: bool = False,
    no_4x: bool = False,
    no_post: bool = False,
) -> Layout:
    """A single image at `target_index`, from control images at `clean_indices`.

    Unless left out, a frame of zeros ("post") follows the window as the last of `clean`, and zeros stand for the
    2x and 4x history.
    """
    _, post, middle, oldest = _runs(1 + window, *HISTORY)
    return Layout(
        (target_index,),
        (*clean_indices, *(() if no_post else post)),
        () if no_2x else middle,
        () if no_4x else oldest,
    )


def _runs(*lengths: int) -> list[tuple[int, ...]]:
    """Consecutive numbers from 0 on, cut into runs of these lengths."""
    runs, start = [], 0
    for length in lengths:
        runs.append(tuple(range(start, start + length)))
        start += length
    return runs


# ------------------------------------------------------------------------------------------------------- text syntax


_SEPARATOR = ";;;"
_INDEX = re.compile(r"\s*(-?\d+)(?:-(-?\d+))?\s*:(.*)", re.DOTALL)


def parse_sections(text: str | None, *, role: str = "--prompt") -> dict[int, str]:
    """`0:first part;;;1-2:then;;;-1:the end` as {section: text}; for prompts and image paths.

    Without `;;;` the whole text is for section 0, colons and all. A part that does not begin with an index is for
    section 0 too, and is kept whole: `C:\\a.png` and "A cat: asleep" lose nothing (musubi-tuner cuts both at the
    colon). A range includes its end and may be negative (`-3--1`). Later parts win over earlier ones; empty parts
    are skipped. Where nothing is said for section 0, it gets the text of the lowest index from 0 on, else of the
    lowest. Empty for None and "". OptionError for a range that runs backwards.
    """
    if not text:
        return {}
    if _SEPARATOR not in text:
        return {0: text}
    found: dict[int, str] = {}
    for part in filter(None, (part.strip() for part in text.split(_SEPARATOR))):
        indexed = _INDEX.fullmatch(part)
        if not indexed:
            found[0] = part
            continue
        first, last = int(indexed[1]), int(indexed[2] or indexed[1])
        if last < first:
            raise OptionError(
                f"{role}: the range {first}-{last} runs backwards.",
                f"Write it as {last}-{first}:…, lower number first.",
            )
        found.update(dict.fromkeys(range(first, last + 1), indexed[3].strip()))
    if found and 0 not in found:
        found[0] = found[min((index for index in found if index > 0), default=min(found))]
    return found


def choose(table: Mapping[int, T], section: Section) -> T:
    """What `parse_sections` (or anything keyed like it) says for a section: by its place from the end, from the
    start, else section 0's."""
    for index in (section.from_end, section.index):
        if index in table:
            return table[index]
    return table[0]


@dataclass(frozen=True)
class OneFrame:
    """`--one_frame_inference`, read. `control_indices` are those given, in the order of the control images."""

    target_index: int
    control_indices: tuple[int, ...] = ()
    no_2x: bool = False
    no_4x: bool = False
    no_post: bool = False

    def layout(self, controls: int, *, window: int = WINDOW) -> Layout:
        """Places for this many control images (at least one: zeros stand in for none); the default place is 0."""
        if len(self.control_indices) > controls:
            raise OptionError(
                f"control_index names {len(self.control_indices)} places, but there are {controls} control images.",
                "Give one --control_image_path for each, or fewer places in --one_frame_inference.",
            )
        indices = [*self.control_indices, *[0] * (controls - len(self.control_indices))]
        return one_frame_layout(
            self.target_index, indices, window=window, no_2x=self.no_2x, no_4x=self.no_4x, no_post=self.no_post
        )


def parse_one_frame(text: str, *, window: int = WINDOW) -> OneFrame:
    """`no_2x,no_4x,target_index=1,control_index=0;10` (or `default`). OptionError for a word that is not known."""
    flags, values = {"no_2x": False, "no_4x": False, "no_post": False}, {}
    for word in filter(None, (word.strip() for word in text.split(","))):
        name, equals, value = (part.strip() for part in word.partition("="))
        numbers = [number.strip() for number in value.split(";")]
        if name in flags and not equals:
            flags[name] = True
        elif name in ("target_index", "control_index") and all(number.isdecimal() for number in numbers):
            values[name] = tuple(int(number) for number in numbers)
        elif word != "default":
            raise OptionError(
                f"--one_frame_inference does not know {word!r}.",
                "It is a list of default, no_2x, no_4x, no_post, target_index=1, control_index=0;10.",
            )
    target = values.get("target_index", (window,))
    if len(target) != 1:
        raise OptionError("--one_frame_inference: target_index takes one number.", "Write e.g. target_index=1.")
    return OneFrame(target[0], values.get("control_index", ()), **flags)
