"""Options of datasets, caching, and the tools that look at a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import OptionError
from ..schema import Section, opt


@dataclass(frozen=True, kw_only=True)
class Data(Section, title="Dataset"):
    """What is cached or trained on."""

    dataset_config: str = opt(
        None, "Dataset file (TOML): folders, captions, resolution, frames.", required=True, file_kind="dataset",
        metavar="FILE",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Caching(Section, title="Caching"):
    """How caches are made. Finished ones are skipped as long as source, settings and model are unchanged."""

    batch_size: int | None = opt(
        None, "Encode at most this many items at once. Default: one clip, 16 captions.", low=1, unit="items"
    )
    num_workers: int | None = opt(
        None, "Threads that read and decode clips; captions need none. Default: one less than the CPU cores, and at "
        "most 3 in each of several processes.", low=1, unit="threads",
    )  # fmt: skip
    skip_existing: bool = opt(
        False, "Keep cache files of unknown origin too, such as musubi-tuner's; without this flag they are made again."
    )
    recache: bool = opt(False, "Make every cache again, even those that are up to date.")
    keep_cache: bool = opt(False, "Keep cache files whose clips are no longer in the dataset; they will be trained on.")
    strict: bool = opt(False, "Stop at the first file that cannot be read, instead of reporting and skipping it.")

    def __post_init__(self) -> None:
        if self.recache and self.skip_existing:
            raise OptionError(
                "--recache and --skip_existing contradict each other.",
                hint="Leave out --skip_existing to make everything again, or --recache to keep what exists.",
                names=("recache", "skip_existing"),
            )


@dataclass(frozen=True, kw_only=True)
class LatentCaching(Caching, title="Caching"):
    """How caches are made. Finished ones are skipped as long as source, settings and model are unchanged."""

    debug_mode: Literal["image", "console", "video"] | None = opt(
        None, "Show what would be cached instead of caching: on a contact sheet beside the dataset file, in the "
        "terminal, or as video files in the cache folder.", advanced=True,
    )  # fmt: skip
    console_width: int = opt(80, "Width of pictures in the terminal.", low=8, unit="characters", advanced=True)
    console_back: str = opt("black", "Colour around pictures in the terminal.", advanced=True, metavar="COLOUR")
    console_num_images: int | None = opt(
        None, "Draw at most this many clips of each dataset in the terminal. Default: all.", low=1, advanced=True
    )
    disable_cudnn_backend: bool = opt(False, "Do not use cuDNN; may help on AMD GPUs.", advanced=True)


@dataclass(frozen=True, kw_only=True)
class DatasetTools(Section, title="Looking at a dataset"):
    """Which family to count for, and what the contact sheet looks like."""

    family: str = opt("wan", "Count frames and buckets the way this model family does.", metavar="FAMILY")
    sheet_path: str | None = opt(
        None, "Write the contact sheet to this PNG. Default: beside the dataset file.", file_kind="image",
        metavar="FILE",
    )  # fmt: skip
    sheet_items: int = opt(32, "Show at most this many items on the sheet.", low=1, unit="items")
    sheet_frames: int = opt(4, "Show this many frames of each clip.", low=1, high=16, unit="frames")


@dataclass(frozen=True, kw_only=True)
class Demo(Section, title="Demo"):
    """The whole workflow on small models, to see that everything works."""

    family: str = opt("wan", "Run the demo of this model family.", metavar="FAMILY")
    out: str | None = opt(
        None, "Folder for everything the demo makes. Default: demo/ in MUSUBI_HOME, else ./musubi-demo.",
        file_kind="folder", metavar="DIR",
    )  # fmt: skip
    prepare_only: str | None = opt(
        None, "Write only the dataset, the models and the four job files into this folder.", file_kind="folder",
        metavar="DIR",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Docs(Section, title="Pages"):
    """The reference pages, generated from the declarations of the options."""

    check: bool = opt(False, "Change nothing; fail with the list of pages that are not up to date.")
    docs_dir: str | None = opt(
        None, "Folder of the pages. Default: docs/options of this pack.", file_kind="folder", metavar="DIR"
    )
