"""What there is to cache: sources, their windows, which caches are fresh, and which old files belong to nothing.

Probes files and reads headers; decodes and encodes nothing. Used by pipeline.py before and after its work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..contract.errors import DataError, Stopped
from ..contract.events import Control, Meter, Say
from . import cache, fingerprints
from .clips import Cut, Window, plan, uncut
from .config import Dataset, DatasetConfig
from .fingerprints import Content, Fingerprint
from .items import Source, sources
from .report import reason_of

QUIET_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the person wants done with existing caches and broken files."""

    skip_existing: bool = False
    recache: bool = False
    keep_cache: bool = False
    strict: bool = False

    def wants(self, state: str) -> bool:
        """Whether a cache in this state is made (again)."""
        return self.recache or state in ("missing", "stale") or (state == "foreign" and not self.skip_existing)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a cache is made with, apart from its source: for names, metadata and fingerprints."""

    architecture: str  # short name, in file names
    architecture_full: str  # full name, in metadata
    identity: str  # of the model that encodes
    settings: Mapping[str, Any]  # the family's own that change the tensors
    # of latents only
    native_fps: float | None = None
    use_controls: bool = False
    cut: Cut = uncut


@dataclass(frozen=True, kw_only=True)
class Surveyed:
    """One source: its windows and content, or the reason why it has none."""

    source: Source
    windows: tuple[Window, ...] = ()
    contents: tuple[Content, ...] | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class WindowCaches:
    """One window of a source, its cache files, and the state in which they were found.

    `state` is that of the worst file: "fresh", "stale", "missing" or "foreign" (without a fingerprint).
    """

    window: Window
    paths: tuple[Path, ...]
    expected: Fingerprint
    state: str


def all_sources(config: DatasetConfig, say: Say, *, use_controls: bool = False) -> list[Source]:
    """All sources of the dataset file; without their controls where nobody will look at them. DataError."""
    found = [source for dataset in config.datasets for source in sources(dataset, say=say)]
    if not found:
        raise DataError(f"{config.path} names no image or video.", "Check the directories and jsonl files in it.")
    return found if use_controls else [replace(source, controls=()) for source in found]


def survey(
    found: Sequence[Source], recipe: Recipe, *, workers: int, say: Say, control: Control, label: str
) -> list[Surveyed]:
    """Probe every source on threads, in order. Progress is shown when it takes longer than a second."""
    meter, surveyed = Meter(say, total=len(found), unit="files", label=label, quiet_s=QUIET_S), []
    with ThreadPoolExecutor(max_workers=max(1, workers), thread_name_prefix="probe") as pool:
        for result in pool.map(lambda source: _probe(source, recipe, say, control), found):
            if control.stop_requested or result is None:
                pool.shutdown(wait=True, cancel_futures=True)
                raise Stopped("Stopped before anything was cached.")
            surveyed.append(result)
            meter.advance()
    meter.close()
    return surveyed


def _probe(source: Source, recipe: Recipe, say: Say, control: Control) -> Surveyed | None:
    if control.stop_requested:
        return None
    contents = None
    try:
        contents = contents_of(source, recipe)
        windows = plan(source, target_fps=recipe.native_fps, say=say)
    except (DataError, OSError) as error:
        return Surveyed(source=source, contents=contents, reason=reason_of(error))
    return Surveyed(source=source, windows=tuple(windows), contents=contents)


def contents_of(source: Source, recipe: Recipe) -> tuple[Content, ...]:
    """The source and its controls as they are now. OSError passes."""
    paths = (source.path, *(source.controls if recipe.use_controls else ()))
    return tuple(fingerprints.content_of(path) for path in paths)


def planned_caches(surveyed: Iterable[Surveyed], recipe: Recipe, fail: Callable[..., None]) -> list[WindowCaches]:
    """The caches of every window; sources that cannot be read fail.

    No two windows share a cache name: items.py refuses equal stems, config.py shared cache folders.
    """
    planned: list[WindowCaches] = []
    for one in surveyed:
        if one.reason:
            fail(one.source, one.reason)
        for window in one.windows:
            try:
                paths = output_paths(window, recipe)
            except DataError as error:  # too short for a single training sample
                fail(one.source, reason_of(error), [window])
                continue
            expected = expected_fingerprint(window, one.contents or (), recipe)
            states = [fingerprints.state(path, expected) for path in paths]
            worst = next((state for state in ("missing", "stale", "foreign") if state in states), "fresh")
            planned.append(WindowCaches(window=window, paths=paths, expected=expected, state=worst))
    return planned


def output_paths(window: Window, recipe: Recipe) -> tuple[Path, ...]:
    """The files that one window becomes."""
    cut = recipe.cut(window)
    if cut is None:
        return (cache.latent_path(window, recipe.architecture),)
    _, count = cut
    return tuple(cache.latent_path(window, recipe.architecture, section=section) for section in range(count))


def expected_fingerprint(window: Window, contents: tuple[Content, ...], recipe: Recipe) -> Fingerprint:
    """The fingerprint that a cache of this window gets now."""
    dataset = window.source.dataset
    settings: dict[str, Any] = {"bucket": window.bucket, "original": window.original, "family": dict(recipe.settings)}
    if window.source.media != "image" and dataset.source_fps is not None:
        settings |= {"source_fps": dataset.source_fps, "native_fps": recipe.native_fps}
    if recipe.use_controls and window.source.controls:
        settings["controls"] = [dataset.control_resolution, dataset.no_resize_control]
    one_frame = [dataset.fp_1f_clean_indices, dataset.fp_1f_target_index, dataset.fp_1f_no_post]
    if one_frame != [None, None, False]:
        settings["one_frame"] = one_frame
    if recipe.cut(window) is not None:
        settings["window"] = dataset.fp_latent_window_size
    return Fingerprint(
        source=contents,
        window={"start": window.start, "count": window.count},
        settings=settings,
        model=recipe.identity,
        plan=fingerprints.plan_settings(dataset),
    )


def described(planned: Sequence[WindowCaches]) -> dict[str, Any]:
    """Windows of one source as plain values, for another process to read with `caches_of`."""
    windows = [entry.window for entry in planned]
    return {
        "source": windows[0].source.key,
        "contents": [vars(content) for content in planned[0].expected.source],
        "windows": [(window.start, window.count, window.bucket, window.original) for window in windows],
    }


def caches_of(
    description: Mapping[str, Any], found: Mapping[tuple[int, str], Source], recipe: Recipe
) -> list[WindowCaches]:
    """What `described` wrote. All of it is wanted, whatever its state by now. DataError."""
    index, path = description["source"]
    source = found.get((index, path))
    if source is None:
        raise DataError(f"{path} has disappeared from the dataset since the start.", "Start again.")
    contents = tuple(Content(**content) for content in description["contents"])
    planned = []
    for start, count, bucket, original in description["windows"]:
        window = Window(source=source, start=start, count=count, bucket=tuple(bucket), original=tuple(original))
        expected = expected_fingerprint(window, contents, recipe)
        planned.append(
            WindowCaches(window=window, paths=output_paths(window, recipe), expected=expected, state="missing")
        )
    return planned


# --------------------------------------------------------------------------------------------------- afterwards


def tidy_latents(
    datasets: Sequence[Dataset],
    surveyed: Sequence[Surveyed],
    planned: Sequence[WindowCaches],
    recipe: Recipe,
    *,
    keep: bool,
) -> int:
    """Remove the latent caches that no window owns, or with `keep` mark those that would be wrong to train on.

    A source that cannot be read just now keeps its caches while its content is what they were made from.
    """
    owned = {path for entry in planned for path in entry.paths}
    stems = {(one.source.dataset.index, one.source.stem) for one in surveyed}
    removed = 0
    for dataset in datasets:
        video = dataset.kind == "video"
        names = cache.latent_files(dataset.cache_directory, recipe.architecture, video=video)
        owned |= {name.path for name in names if _is_protected(name, dataset, surveyed)}
        lost = cache.orphans(
            dataset.cache_directory, architecture=recipe.architecture, kind="latents", video=video, keep=owned
        )
        by_path = {name.path: name for name in names}
        for path in lost:
            if not keep:
                cache.remove(path)
                removed += 1
            elif (dataset.index, by_path[path].stem) in stems or not _still_good(path, dataset, recipe):
                fingerprints.retire(path)
    return removed


def _is_protected(name: cache.LatentName, dataset: Dataset, surveyed: Sequence[Surveyed]) -> bool:
    for one in surveyed:
        if one.reason and one.source.stem == name.stem and one.source.dataset.index == dataset.index:
            if one.contents is None:
                return True
            try:
                found = fingerprints.read(name.path)
            except fingerprints.Unreadable:
                return False
            samples = [content.sample for content in one.contents]
            return found is None or (
                fingerprints.in_plan(found, dataset) and [content.sample for content in found.source] == samples
            )
    return False


def _still_good(path: Path, dataset: Dataset, recipe: Recipe) -> bool:
    """Whether a kept cache whose source is gone still fits the rest: same settings, same model, or foreign."""
    try:
        found = fingerprints.read(path)
    except fingerprints.Unreadable:
        return False
    if found is None:
        return True
    same_family = fingerprints.plain(found.settings.get("family", {})) == fingerprints.plain(dict(recipe.settings))
    return found.model == recipe.identity and same_family and fingerprints.in_plan(found, dataset)


def tidy_texts(datasets: Sequence[Dataset], owned: set[Path], architecture: str, *, keep: bool) -> int:
    """Remove the text caches that no source owns; with `keep` leave them."""
    removed = 0
    for dataset in () if keep else datasets:
        folder = dataset.cache_directory
        for path in cache.orphans(folder, architecture=architecture, kind="text", video=False, keep=owned):
            cache.remove(path)
            removed += 1
    return removed
