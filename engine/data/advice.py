"""What was probably not intended in a dataset that is otherwise usable: warnings, where items.py has errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Sequence
from pathlib import Path

from ..contract.events import Say, Warning_
from ..contract.wording import first_few
from ..media import suffixes
from ..parts.tokenizers import TokenCount
from .clips import Window
from .config import Dataset, DatasetConfig
from .frames import same_rate
from .items import Source, list_folder

CountTokens = Callable[[list[str]], Sequence[TokenCount]]
MOST = 3
"""So many warnings of what may be found again and again in a large dataset; then how many more there are."""
TOO_FAST = 1.4
"""A video whose rate is this many times the model's shows slow motion, if every frame of it is taken."""


def before_caching(
    config: DatasetConfig, windows: Sequence[Window], news: Collection[Path], *, native_fps: float | None, say: Say
) -> None:
    """What caching tells a person who has not had the dataset checked. `news`: the files that it will cache."""
    if news:
        on_other_files(config.datasets, say)
        on_rates(windows, news=news, native_fps=native_fps, say=say)


def on_other_files(datasets: Iterable[Dataset], say: Say) -> None:
    """Files of a kind that is not read although somebody wrote captions for them: GIFs among videos, say.

    DataError where the folder of a dataset cannot be listed.
    """
    readers: dict[Path, list[Dataset]] = {}
    for dataset in datasets:
        if dataset.source_jsonl is None:
            readers.setdefault(dataset.source_directory, []).append(dataset)
    for folder, here in readers.items():
        endings = tuple(dict.fromkeys(ending for dataset in here for ending in suffixes.of_kind(dataset.kind)))
        others = _unread_but_captioned(list_folder(folder), endings, {dataset.caption_extension for dataset in here})
        if others:
            files = "1 file with a caption is" if len(others) == 1 else f"{len(others)} files with captions are"
            ends = " ".join(endings)
            say(Warning_(message=f"{folder}: {files} left out ({first_few(others)}). Files read there end in {ends}."))


def _unread_but_captioned(files: Sequence[Path], endings: Container[str], captions: Collection[str]) -> list[Path]:
    names = {path.name for path in files}
    read = {path.stem for path in files if path.suffix.lower() in endings}
    return [
        path
        for path in files
        if path.stem not in read and path.suffix not in captions
        if any(path.stem + caption in names for caption in captions)
    ]


def on_empty_captions(found: Sequence[Source], dataset: Dataset, say: Say) -> None:
    empty = [item.path for item in found if not item.caption]
    if empty:
        count = "1 caption is" if len(empty) == 1 else f"{len(empty)} captions are"
        say(Warning_(message=f"{dataset.table}: {count} empty ({first_few(empty)})."))


def on_equal_captions(found: Sequence[Source], say: Say) -> None:
    """A text copied by mistake, most often. One file in several datasets has a right to the same caption in each."""
    paths: dict[str, dict[Path, Path]] = {}
    for item in found:
        if item.caption:
            paths.setdefault(item.caption, {})[item.path.resolve()] = item.path
    several = sorted((list(each.values()) for each in paths.values() if len(each) > 1), key=len, reverse=True)
    for each in several[:MOST]:
        say(Warning_(message=f"{len(each)} items have the same caption ({first_few(each)})."))
    if len(several) > MOST:
        more = len(several) - MOST
        say(Warning_(message=f"{more} more caption{'s belong' if more > 1 else ' belongs'} to several items."))


def on_cut_captions(found: Sequence[Source], count: CountTokens, say: Say) -> None:
    """Tell of each dataset which captions the text encoder does not read to their end."""
    captions = list(dict.fromkeys(source.caption for source in found))
    counts = dict(zip(captions, count(captions), strict=True))
    cut: dict[str, list[Source]] = {}
    for source in found:
        if counts[source.caption].read < counts[source.caption].tokens:
            cut.setdefault(source.dataset.table, []).append(source)
    for table, sources in cut.items():
        many = "1 caption is" if len(sources) == 1 else f"{len(sources)} captions are"
        tokens, read = counts[sources[0].caption]
        say(
            Warning_(
                message=f"{table}: {many} longer than the text encoder reads "
                f"({first_few(source.path for source in sources)}). "
                f"{'It' if len(sources) == 1 else 'The first'} has {tokens} tokens, of which only {read} are read. "
                "Shorten such captions, or put the important words first."
            )
        )


def on_lengths(windows: Sequence[Window], say: Say) -> None:
    """Name the lengths that some videos do not reach; they give shorter clips only."""
    reached: dict[Path, set[int]] = {}
    datasets: dict[Path, Dataset] = {}
    for window in windows:
        dataset = window.source.dataset
        if window.source.media != "image" and dataset.frame_extraction != "full":
            reached.setdefault(window.source.path, set()).add(window.count)
            datasets[window.source.path] = dataset
    missed = Counter(
        (datasets[path].table, length)
        for path, lengths in reached.items()
        for length in datasets[path].target_frames
        if length not in lengths
    )
    for (table, length), count in sorted(missed.items()):
        videos = "1 video is" if count == 1 else f"{count} videos are"
        say(Warning_(message=f"{table}: {videos} too short for a clip of {length} frames; only shorter ones are made."))


def on_rates(
    windows: Sequence[Window], *, native_fps: float | None, say: Say, news: Container[Path] | None = None
) -> None:
    """Videos that are much faster than the model's rate, in a dataset that has every frame taken (no `source_fps`).

    Only of those in `news` is anything said, if it is given.
    """
    if native_fps is None:
        return
    rates: dict[str, dict[Path, float]] = {}
    for window in windows:
        dataset, info = window.source.dataset, window.timeline.info if window.timeline is not None else None
        if info is not None and window.count > 1 and dataset.source_fps is None:
            rates.setdefault(dataset.table, {})[window.source.path] = info.fps
    limit = TOO_FAST * native_fps
    fast = Counter(
        (table, round(rate))
        for table, found in rates.items()
        for path, rate in found.items()
        if rate >= limit and (news is None or path in news)
    )
    for (table, rate), count in sorted(fast.items()):
        videos = "1 video runs" if count == 1 else f"{count} videos run"
        alone = all(same_rate(other, rate) for other in rates[table].values())
        say(
            Warning_(
                message=f"{table}: {videos} at {rate} frames a second, and every frame is taken. The model's "
                f"videos have {native_fps:g}, so it would learn motion {rate / native_fps:.2g} times too slow. "
                + (
                    f"Add source_fps = {rate} there to have such videos resampled."
                    if alone
                    else f"Give such videos a dataset of their own with source_fps = {rate}, to have them resampled."
                )
            )
        )
