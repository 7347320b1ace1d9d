"""The dataset node: describes a dataset from a folder, a file or a text, and writes the file that the engine reads.

Every path in it is resolved, must be in an allowed folder, and is written out in full. Datasets can be chained: each
`[[datasets]]` table then keeps the values of its own `[general]`. What the keys mean is up to the engine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.contract import toml
from ..engine.contract.errors import DataError, OptionError
from ..engine.contract.files import write_text
from . import manifest, paths, widgets
from .sockets import DATASET, STRING
from .spec import NONE, Call, Node, Outcome, Result, Socket, Switch, Widget

FOLDER_KEYS = ("image_directory", "video_directory")
LIST_KEYS = ("image_jsonl_file", "video_jsonl_file")
CACHE_KEY = "cache_directory"
PATH_KEYS = (*FOLDER_KEYS, *LIST_KEYS, CACHE_KEY, "control_directory")
EXTRACTIONS = ("head", "chunk", "slide", "uniform", "full")
MOST_TABLES = 100
WINDOW = 9
"""The engine's default for fp_latent_window_size."""
TEXT_EXAMPLE = """\
[general]
resolution = [960, 544]
caption_extension = ".txt"
enable_bucket = true

[[datasets]]
video_directory = "datasets/my clips"
target_frames = [1, 25, 45]
frame_extraction = "head"
"""


@dataclass(frozen=True)
class Dataset:
    """A described dataset: its file, the file's tables, and where media and caches are."""

    path: str
    tables: tuple[Mapping[str, Any], ...]

    @property
    def sources(self) -> list[str]:
        return [str(table[key]) for table in self.tables for key in (*FOLDER_KEYS, *LIST_KEYS) if key in table]

    @property
    def caches(self) -> list[str]:
        """The cache folder of each table; if none is given, as the engine chooses it."""
        found = []
        for table, source in zip(self.tables, self.sources, strict=True):
            given = Path(source)
            found.append(str(table.get(CACHE_KEY) or (given.parent if given.is_file() else given)))
        return found

    def look_for_sources(self) -> None:
        """DataError unless the folders and lists of the media exist. For caching; training needs only the caches."""
        for source in map(Path, self.sources):
            if not source.exists():
                raise DataError(f"{source}: there is no such file or folder.", "Correct the path.")

    def stamp(self) -> list[Any]:
        """A value that changes when a file of the dataset does."""
        places = [
            *self.sources,
            *(str(table["control_directory"]) for table in self.tables if "control_directory" in table),
        ]
        return [list(self.tables), [[place, _media_stamp(Path(place))] for place in places]]


def _media_stamp(place: Path) -> list[Any]:
    """As manifest.stamp_of, without the caches that may be among the media."""
    if not place.is_dir():
        return manifest.stamp_of(place)
    files = sorted(path for path in place.rglob("*") if path.is_file() and not path.name.startswith("."))
    ours = (".safetensors", ".fingerprint.json")
    return [[path.name, *manifest.stamp_of(path)] for path in files if not path.name.endswith(ours)]


def dataset_of(value: Any) -> Dataset:
    """The value of a dataset input. OptionError: it is not a dataset."""
    if not isinstance(value, Dataset):
        raise OptionError("The dataset input needs a Dataset Config node.", hint="Connect one.")
    return value


# ------------------------------------------------------------------------------------------------------- the widgets


def _folder_widgets() -> tuple[Widget, ...]:
    return (
        Widget(
            id="folder", kind="choice", default=NONE, listing=paths.media_folders,
            help="Folder of videos or images, each with a caption file of the same name beside it. From ComfyUI's "
            "datasets, input and output folders, and the folders allowed on the server.",
        ),
        Widget(
            id="kind", kind="choice", default="auto", choices=("auto", "videos", "images"),
            help="What to take from the folder. auto: videos if there are any, else images.",
        ),
        Widget(
            id="width", kind="int", default=960, low=16, high=8192, step=16,
            help="Together with height: how many pixels a clip may have. With enable bucket it keeps its own aspect "
            "ratio.",
        ),
        Widget(id="height", kind="int", default=544, low=16, high=8192, step=16, help="See width."),
        Widget(
            id="enable_bucket", kind="bool", default=True, label="enable bucket",
            help="Let each clip keep its aspect ratio, in sizes of about the same area; else all are cropped to one "
            "size.",
        ),
        Widget(
            id="target_frames", kind="text", default="25", label="target frames",
            help="Lengths of the clips that are cut from a video, in frames: 4n+1, such as 1, 25, 45.",
        ),
        Widget(
            id="frame_extraction", kind="choice", default="head", choices=EXTRACTIONS, label="frame extraction",
            help="Where clips are cut. head: at the beginning; chunk: one after another; slide: every frame_stride "
            "frames; uniform: frame_sample clips, evenly spread; full: the whole video, up to max_frames.",
        ),
        Widget(
            id="batch_size", kind="int", default=1, low=1, high=1024, label="batch size",
            help="Clips that are trained on at once.",
        ),
        Widget(
            id="num_repeats", kind="int", default=1, low=1, high=100000, label="repeats",
            help="How often each clip is used in an epoch.",
        ),
        Widget(
            id="caption_extension", kind="choice", default=".txt", choices=(".txt", ".caption"), advanced=True,
            label="caption extension", help="Extension of the caption files.",
        ),
        Widget(
            id="bucket_no_upscale", kind="bool", default=False, advanced=True, label="no upscaling",
            help="Leave clips smaller than the resolution as they are.",
        ),
        Widget(
            id="frame_stride", kind="int", default=1, low=1, high=10000, advanced=True, label="frame stride",
            help="Frames between two clips, for slide.",
        ),
        Widget(
            id="frame_sample", kind="int", default=1, low=1, high=10000, advanced=True, label="frame sample",
            help="Clips from each video, for uniform.",
        ),
        Widget(
            id="max_frames", kind="int", default=129, low=1, high=10000, advanced=True, label="max frames",
            help="Longest clip in frames, for full.",
        ),
        Widget(
            id="source_fps", kind="float", default=0.0, low=0, high=1000, step=1, advanced=True, label="source fps",
            help="Frames per second of the videos, to convert them to the model's own rate. 0: every frame is used.",
        ),
        Widget(
            id="fp_latent_window_size", kind="int", default=WINDOW, low=1, high=1000, advanced=True,
            label="latent window size", help="Latent frames in a section, for models that make a video in sections; "
            "the published ones have 9.",
        ),
        Widget(
            id="control_folder", kind="choice", default=NONE, listing=paths.media_folders, advanced=True,
            label="control folder", help="Folder of control videos or images with the same names, for models that take "
            "them.",
        ),
    )  # fmt: skip


def _cases() -> dict[str, tuple[Widget, ...]]:
    return {
        "folder": _folder_widgets(),
        "file": (
            Widget(
                id="file", kind="choice", default=NONE, listing=paths.dataset_files,
                help="A dataset file (.toml or .json) in an allowed folder, in musubi-tuner's format.",
            ),
        ),
        "text": (
            Widget(
                id="text", kind="text", default=TEXT_EXAMPLE, multiline=True,
                help="The content of a dataset file. Paths begin with the name of an allowed folder: datasets, input, "
                "output.",
            ),
        ),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------- from widgets to it


def described(
    source: Mapping[str, Any], previous: Dataset | None = None, *, preserve_prior: bool = False
) -> tuple[Mapping[str, Any], ...]:
    """The `[[datasets]]` tables that the widgets describe, with paths resolved. OptionError, DataError.

    `preserve_prior`: set it in all tables of the source; else each has what its file or text says.
    """
    if source["source"] == "folder":
        tables = [_of_folder(source)]
    elif source["source"] == "file":
        if source["file"] == NONE:
            raise OptionError("No dataset file is chosen.", hint="Choose one in file.", names=("file",))
        file = paths.named(source["file"])
        tables = _looked_up(_parsed(file), beside=file.parent)
    else:
        tables = _looked_up(_parsed_text(source["text"]), beside=None)
    if preserve_prior:
        tables = [{**table, "preserve_prior": True} for table in tables]
    return (*(previous.tables if previous else ()), *tables)


def _of_folder(chosen: Mapping[str, Any]) -> dict[str, Any]:
    if chosen["folder"] == NONE:
        raise OptionError(
            "No folder is chosen.",
            hint="Put clips with captions into ComfyUI's datasets folder, press R, and choose it.",
            names=("folder",),
        )  # fmt: skip
    folder = paths.named(chosen["folder"])
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder.", "Press R to read the folders again, and choose.")
    videos = chosen["kind"] == "videos" or (chosen["kind"] == "auto" and _has_videos(folder))
    table: dict[str, Any] = {
        "video_directory" if videos else "image_directory": str(folder),
        CACHE_KEY: str(paths.cache_of(folder)),
        "resolution": [chosen["width"], chosen["height"]],
        "caption_extension": chosen["caption_extension"],
        "enable_bucket": chosen["enable_bucket"],
        "bucket_no_upscale": chosen["bucket_no_upscale"],
        "batch_size": chosen["batch_size"],
        "num_repeats": chosen["num_repeats"],
    }
    if chosen["fp_latent_window_size"] != WINDOW:
        table["fp_latent_window_size"] = chosen["fp_latent_window_size"]
    if chosen["control_folder"] != NONE:
        table["control_directory"] = str(paths.named(chosen["control_folder"]))
    if videos:
        table["target_frames"] = _frame_counts(chosen["target_frames"])
        table.update({key: chosen[key] for key in ("frame_extraction", "frame_stride", "frame_sample", "max_frames")})
        if chosen["source_fps"]:
            table["source_fps"] = float(chosen["source_fps"])
    return table


def _has_videos(folder: Path) -> bool:
    return any(path.suffix.lower() in paths.VIDEO_SUFFIXES for path in folder.iterdir() if path.is_file())


def _frame_counts(text: str) -> list[int]:
    words = text.replace(",", " ").split()
    if not words or not all(word.isascii() and word.isdigit() and 0 < int(word) < 100_000 for word in words):
        raise OptionError(
            f"target_frames {text[:100]!r} is not a list of whole numbers.", hint="Write, for example, 1, 25, 45.",
            names=("target_frames",),
        )  # fmt: skip
    return [int(word) for word in words]


def _parsed(file: Path) -> dict[str, Any]:
    if file.suffix.lower() != ".json":
        return toml.load(file)
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}.", "Correct the file.") from error
    if not isinstance(data, dict):
        raise DataError(f"{file} must hold an object with general and datasets.")
    return data


def _parsed_text(text: str) -> dict[str, Any]:
    return toml.loads(text, "the text of this node")


def _looked_up(document: Mapping[str, Any], *, beside: Path | None) -> list[dict[str, Any]]:
    general, tables = document.get("general", {}), document.get("datasets", [])
    unknown = [key for key in document if key not in ("general", "datasets")]
    if unknown:
        raise DataError(f"Unknown table or key {unknown[0]!r}.", "A dataset has [general] and [[datasets]].")
    if not isinstance(general, Mapping):
        raise DataError("general must be a table.", "Write [general].")
    if not tables:
        raise DataError("There is no [[datasets]] table.", "Add one with video_directory or image_directory.")
    if not isinstance(tables, list):
        raise DataError("datasets must be a list of tables.", "Write [[datasets]], with two brackets.")
    if len(tables) > MOST_TABLES:
        raise DataError(f"There are {len(tables)} [[datasets]] tables.", f"At most {MOST_TABLES} can be read here.")
    found = []
    for table in tables:
        if not isinstance(table, Mapping):
            raise DataError("datasets must be a list of tables.", "Write [[datasets]], with two brackets.")
        values = {**general, **table}
        for key in PATH_KEYS:
            if key in values:
                values[key] = str(_path(values[key], key, beside))
        if not any(key in values for key in (*FOLDER_KEYS, *LIST_KEYS)):
            raise DataError("A [[datasets]] table names no media.", "Add video_directory or image_directory.")
        ending = values.get("caption_extension")
        if isinstance(ending, str) and set(ending) & set("/\\:\0"):
            raise DataError(f"caption_extension {ending[:100]!r} is not a file extension.", "Use .txt.")
        for key in LIST_KEYS:
            if key in values:
                _check_list(Path(values[key]))
        found.append(values)
    return found


def _path(text: Any, key: str, beside: Path | None) -> Path:
    if not isinstance(text, str):
        raise DataError(f"{key} needs a path, not {text!r}.", f"Change {key}.")
    try:
        if beside is not None and "\0" not in text and (beside / text).exists():
            return paths.inside(beside / text)
        return paths.anywhere(text)
    except OptionError as error:
        raise OptionError(f"{key}: {error.message}", hint=error.hint, names=(key,)) from None


def _check_list(file: Path) -> None:
    """OptionError unless every path in a jsonl file is in an allowed folder. Lines end where the engine ends them."""
    try:
        lines = file.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}.", "Correct the path or the file.") from error
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line) if line.strip() else {}
        except ValueError:
            continue  # the engine reports it
        for key, value in entry.items() if isinstance(entry, dict) else ():
            if "_path" in key and isinstance(value, str) and "\0" not in value:
                try:
                    _check_listed(os.path.expanduser(value), file.parent)
                except OptionError as error:
                    raise OptionError(f"{file.name}, line {number}: {error.message}", hint=error.hint) from None


def _check_listed(given: str, beside: Path) -> None:
    """Check a path in a list wherever the engine may find it: in its working folder, or beside the list.
    OptionError."""
    for base in (Path(os.path.realpath(paths.work())), beside):
        if base is beside or os.path.exists(base / given):
            paths.inside(Path(os.path.normpath(base / given)))


def as_toml(tables: tuple[Mapping[str, Any], ...]) -> str:
    """The content of the dataset file with these tables."""
    lines = ["# Written by the Dataset Config node. Every key is described in docs/DATASET.md."]
    for table in tables:
        lines += ["", "[[datasets]]", *(toml.line(key, value) for key, value in table.items())]
    return "\n".join(lines) + "\n"


def written(tables: tuple[Mapping[str, Any], ...], name: str) -> Dataset:
    """The dataset, with its file written, which is named by its content. DataError, DiskError."""
    try:
        text = as_toml(tables)
    except TypeError as error:
        raise DataError(f"A value has a type that a dataset file cannot hold: {error}.", "Correct it.") from error
    path = paths.work() / "datasets" / f"{name}-{paths.short_hash(text)}.toml"
    if not path.is_file() or path.read_bytes() != text.encode():  # somebody may have changed it by hand
        write_text(path, text, durable=False)
    return Dataset(str(path), tables)


# ---------------------------------------------------------------------------------------------------------- the node


def _execute(call: Call) -> Outcome:
    name = paths.safe_name(call.inputs["name"], "name")
    previous = call.inputs.get("previous")
    tables = described(
        call.inputs["source"], None if previous is None else dataset_of(previous),
        preserve_prior=call.inputs["preserve_prior"],
    )  # fmt: skip
    dataset = written(tables, name)
    return Outcome(values=(dataset, dataset.path))


def _fingerprint(inputs: Mapping[str, Any]) -> str:
    """A value that changes with the files of the dataset, so that a new clip is noticed."""
    node = config_node()
    read = widgets.read((node.inputs[0],), inputs)
    tables = described(read["source"])
    return paths.short_hash(json.dumps(Dataset("", tables).stamp()))


def config_node() -> Node:
    return Node(
        name="DatasetConfig", title="Dataset Config", group="Dataset", fingerprint=_fingerprint, execute=_execute,
        check=_execute, told_at="source",
        help="Describes the training data: a folder of clips with captions, a dataset file, or a text. Writes the file "
        "that the engine reads. Chain several to train on all of them.",
        inputs=(
            Switch(id="source", help="Where the dataset comes from.", cases=_cases()),
            Widget(
                id="name", kind="text", default="dataset", help="Name of the file that is written.", advanced=True
            ),
            Socket(
                id="previous", types=(DATASET,), optional=True, label="previous",
                help="A dataset that this one is added to.",
            ),
            Widget(  # outside of the cases, whose widgets come before `name`: its saved value would become this one's
                id="preserve_prior", kind="bool", default=False, advanced=True, label="preserve prior",
                help="These are ordinary clips, on which the LoRA should change nothing: it learns to answer them as "
                "the model does without it. Keeps the results of other prompts as they were.",
            ),
        ),
        results=(
            Result(id="dataset", type=DATASET, help="For caching and training."),
            Result(id="path", type=STRING, help="The dataset file that was written."),
        ),
        aliases=("load dataset", "toml", "captions"),
    )  # fmt: skip


def nodes() -> list[Node]:
    return [config_node()]
