"""The dataset file: TOML or JSON with one `[general]` table and any number of `[[datasets]]`, as musubi-tuner reads it.

Reads and checks; looks at no media and does not ask whether a source folder exists (training needs only the caches).
A value of `[[datasets]]` wins over `[general]`, that over the default. What differs from the reference: whole numbers
are accepted for `source_fps`; wrong input is answered with file, table and key; an unknown key is an error anywhere.

Relative paths are relative to the current folder, as in the reference; what is not there is looked for beside the
dataset file. Where the media are found there, so are their controls first, and their caches in any case.
A `cache_directory` that does not exist yet is made on the side where its media were found.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..contract.errors import DataError
from ..contract.events import Say, Warning_
from ..contract.missing import looked_for, missing_file_hint
from ..contract.wording import did_you_mean
from . import config_keys
from .buckets import STEP, floor_to
from .frames import floor_frames

_SOURCE_KEYS = ("image_directory", "image_jsonl_file", "video_directory", "video_jsonl_file")
_PATH_KEYS = (*_SOURCE_KEYS, "cache_directory", "control_directory")
_OF_ONE_MODE = {"frame_stride": "slide", "frame_sample": "uniform", "max_frames": "full"}
_DEPRECATED = {
    "flux_kontext_no_resize_control": "no_resize_control",
    "qwen_image_edit_no_resize_control": "no_resize_control",
    "qwen_image_edit_control_resolution": "control_resolution",
}


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One `[[datasets]]` table with every value filled in. Sizes are (width, height) in pixels."""

    index: int = 0  # position in the file, from 0
    kind: str = "video"  # "image" or "video"
    config_path: Path = Path("dataset.toml")
    source_directory: Path | None = None  # one of these two is set
    source_jsonl: Path | None = None
    resolution: tuple[int, int] = (960, 544)
    caption_extension: str | None = None
    batch_size: int = 1
    num_repeats: int = 1
    preserve_prior: bool = False
    enable_bucket: bool = False
    bucket_no_upscale: bool = False
    cache_directory: Path = Path(".")
    control_directory: Path | None = None
    control_resolution: tuple[int, int] | None = None
    no_resize_control: bool = False
    multiple_target: bool = False
    target_frames: tuple[int, ...] = (1,)  # 4n+1, ascending
    frame_extraction: str = "head"
    frame_stride: int = 1
    frame_sample: int = 1
    max_frames: int = 129
    source_fps: float | None = None
    fp_latent_window_size: int = 9
    fp_1f_clean_indices: tuple[int, ...] | None = None
    fp_1f_target_index: int | None = None
    fp_1f_no_post: bool = False

    @property
    def table(self) -> str:
        """How messages name this dataset."""
        return f"{self.config_path}: [[datasets]] #{self.index + 1}"


def contact_sheet_path(config_path: Path) -> Path:
    """Where a dataset is drawn, which may be among its images."""
    return config_path.with_name(f"{config_path.stem}_preview.png")


def _default_of(key: str) -> Any:
    """What a dataset has where its file does not say."""
    return Dataset.__dataclass_fields__[key].default


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """A dataset file: its tables in order, and what was odd about it without being wrong."""

    path: Path
    datasets: tuple[Dataset, ...]
    warnings: tuple[str, ...] = ()


def load_config(path: str | Path, *, say: Say | None = None) -> DatasetConfig:
    """Read and check a dataset file (.toml or .json). `say` gets a warning for everything odd.

    Raises DataError naming the file and, as far as they are known, the table, the key, or line and column.
    """
    path = Path(path)
    document = _parse(path)
    warnings: list[str] = []
    unknown = [key for key in document if key not in ("general", "datasets")]
    if unknown:
        raise _unknown_at_top(path, unknown[0])
    general, tables = document.get("general", {}), document.get("datasets", [])
    if not isinstance(general, dict):
        raise DataError(f"{path}: general must be a table, but is {config_keys.describe(general)}.", "Write [general].")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise DataError(f"{path}: datasets must be a list of tables.", "Write [[datasets]], with two brackets.")
    if not tables:
        raise DataError(f"{path}: there is no dataset in this file.", "Add a [[datasets]] table.")
    general = _checked(general, f"{path}: [general]", "general", warnings)
    datasets = tuple(_dataset(table, general, index, path, warnings) for index, table in enumerate(tables))
    _refuse_shared_caches(datasets)
    for warning in warnings:
        if say is not None:
            say(Warning_(message=warning))
    return DatasetConfig(path=path, datasets=datasets, warnings=tuple(warnings))


def _parse(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        hint = missing_file_hint(path) or f"Check --dataset_config.{looked_for(path)}"
        raise DataError(f"{path}: there is no such dataset file.", hint) from error
    except IsADirectoryError as error:
        raise DataError(
            f"{path}: this is a folder, but a .toml or .json file is needed.", "Check --dataset_config."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the file is not UTF-8 (byte {error.start}).", "Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(
            f"{path}: the dataset file cannot be read ({error.strerror}).", "Check its permissions."
        ) from error
    suffix = path.suffix.lower()
    if suffix == ".json":
        document = _parse_json(path, text)
    elif suffix == ".toml":
        document = _parse_toml(path, text)
    else:
        raise DataError(f"{path}: a dataset file ends in .toml or .json.", "Rename it, or check --dataset_config.")
    if not isinstance(document, dict):
        raise DataError(f"{path}: the file must hold an object with general and datasets.", "See the dataset page.")
    return document


def _parse_json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{path}: not valid JSON at {where}: {error.msg}.", "Correct the file there.") from error


def _parse_toml(path: Path, text: str) -> dict[str, Any]:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason = str(error).rstrip(".")
        hint = "Correct the file there."
        if "\\" in reason or "escape" in reason.lower():
            hint = r"Write Windows paths with / or in single quotes: 'C:\clips'."
        raise DataError(f"{path}: not valid TOML: {reason}.", hint) from error


def _unknown_at_top(path: Path, key: str) -> DataError:
    if key in config_keys.KEYS:
        return DataError(f"{path}: {key} stands outside of any table.", "Put it under [general] or [[datasets]].")
    hint = did_you_mean(key, ("general", "datasets"), "A dataset file has [general] and [[datasets]].")
    return DataError(f"{path}: unknown table or key {key}.", hint)


def _checked(table: Mapping[str, Any], where: str, scope: str, warnings: list[str]) -> dict[str, Any]:
    """The table with deprecated names replaced, every key known to the scope and every value converted."""
    renamed: dict[str, Any] = {}
    for key, value in table.items():
        new = _DEPRECATED.get(key, key)
        if new != key and new in table:
            warnings.append(f"{where}: {key} is an old name and ignored, since {new} is set as well.")
            continue
        if new != key:
            warnings.append(f"{where}: {key} is an old name, use {new}.")
        renamed[new] = value
    return {key: config_keys.convert(key, value, where=where, scope=scope) for key, value in renamed.items()}


def _dataset(
    table: Mapping[str, Any], general: Mapping[str, Any], index: int, path: Path, warnings: list[str]
) -> Dataset:
    where = f"{path}: [[datasets]] #{index + 1}"
    named = [key for key in _SOURCE_KEYS if key in table]
    if len(named) > 1:
        raise DataError(
            f"{where}: {' and '.join(named)} are both set; a dataset has one source.",
            "Make a [[datasets]] table for each.",
        )
    scope = "video" if any(key.startswith("video_") for key in table) else "image"
    own = _checked(table, where, scope if named else "dataset", warnings)
    if not named:
        raise DataError(
            f"{where}: none of {', '.join(_SOURCE_KEYS)} is set.", "Name the folder or the list of the media."
        )
    values = {**general, **own}
    paths = _resolved_paths(values, named[0], path)
    values = {key: value for key, value in values.items() if key not in _PATH_KEYS}
    if "target_frames" in values:
        values["target_frames"] = _floored(values["target_frames"], where, warnings)
    if values.get("frame_extraction") == "uniform" and values.get("frame_sample", _default_of("frame_sample")) == 1:
        warnings.append(f"{where}: frame_extraction uniform with frame_sample 1 is the same as head.")
    for key, mode in _OF_ONE_MODE.items():
        if values.get(key, _default_of(key)) != _default_of(key) and values.get("frame_extraction") != mode:
            warnings.append(f'{where}: {key} is ignored: it belongs to frame_extraction = "{mode}".')
    if values.get("bucket_no_upscale") and not values.get("enable_bucket"):
        warnings.append(f"{where}: bucket_no_upscale is ignored without enable_bucket = true.")
    if named[0].endswith("_jsonl_file") and "control_directory" in values:
        warnings.append(f"{where}: control_directory is ignored: a jsonl file names its controls as control_path.")
    dataset = Dataset(index=index, kind=scope, config_path=path, **paths, **values)
    _check_together(dataset)
    return dataset


def _floored(lengths: tuple[int, ...], where: str, warnings: list[str]) -> tuple[int, ...]:
    floored = tuple(sorted({floor_frames(length) for length in lengths}))
    odd = sorted({length for length in lengths if floor_frames(length) != length})
    if odd:
        changes = ", ".join(f"{length} to {floor_frames(length)}" for length in odd)
        warnings.append(f"{where}: target_frames must be 4n+1 and are lowered: {changes}.")
    return floored


def _resolved_paths(values: Mapping[str, Any], source_key: str, config_path: Path) -> dict[str, Path | None]:
    here, beside = Path.cwd(), Path(os.path.abspath(config_path)).parent

    def resolve(key: str, *bases: Path) -> tuple[Path, Path]:
        """The path, and the folder that it was found relative to: the first where nothing is."""
        given = Path(os.path.expanduser(values[key]))
        # unlike Path.exists, os.path.exists is False where it may not be looked at
        base = next((base for base in bases if os.path.exists(base / given)), bases[0])
        return Path(os.path.normpath(base / given)), base

    source, base = resolve(source_key, here, beside)
    of_folder = source_key.endswith("_directory")
    cache = source if of_folder else source.parent
    if "cache_directory" in values:  # another dataset's in the current folder would be tidied up
        cache, _ = resolve("cache_directory", *((here, beside) if base == here else (beside,)))
    control = resolve("control_directory", base, here, beside)[0] if "control_directory" in values else None
    return {
        "source_directory": source if of_folder else None,
        "source_jsonl": None if of_folder else source,
        "cache_directory": cache,
        "control_directory": control,
    }


def _check_together(dataset: Dataset) -> None:
    """Rules between the keys of one dataset."""
    if not dataset.enable_bucket and any(side % STEP for side in dataset.resolution):
        width, height = dataset.resolution
        near = f"[{max(floor_to(width), STEP)}, {max(floor_to(height), STEP)}]"
        raise DataError(
            f"{dataset.table}: resolution: {width}x{height} is not a multiple of {STEP} on both sides.",
            f"Set resolution = {near}, or enable_bucket = true.",
        )
    if dataset.multiple_target:
        raise DataError(
            f"{dataset.table}: multiple_target is for models of layered images, which are not supported here.",
            "Remove multiple_target.",
        )
    if dataset.source_directory is not None and dataset.caption_extension is None:
        raise DataError(
            f"{dataset.table}: caption_extension is not set, so the captions of {dataset.source_directory} "
            "cannot be found.",
            'Set caption_extension = ".txt" there or in [general].',
        )


def _refuse_shared_caches(datasets: tuple[Dataset, ...]) -> None:
    seen: dict[str, Dataset] = {}
    for dataset in datasets:
        real = os.path.realpath(dataset.cache_directory)
        if real in seen:
            first = seen[real].index + 1
            raise DataError(
                f"{dataset.table}: cache_directory: {dataset.cache_directory} is already that of "
                f"[[datasets]] #{first}; every dataset needs its own.",
                "Set cache_directory in one of them (without it, the media's folder is used).",
            )
        seen[real] = dataset
