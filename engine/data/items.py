"""The items of a dataset: each image or video with its caption and controls, from a folder or a jsonl file.

Looks at names and captions, never into media. Every problem of a dataset is found in one go (`survey`); `sources`
raises on the first. Unlike the reference, an image without a caption is an error (there it is left out silently),
and so are two files whose caches would have the same name.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..contract.errors import DataError
from ..contract.events import Log, Say
from ..contract.files import is_utf_8
from ..contract.packages import how_to_install
from ..contract.wording import counted, first_few
from ..media import suffixes
from . import jsonl
from .config import Dataset, contact_sheet_path


@dataclass(frozen=True, kw_only=True)
class Source:
    """One image or video with its caption: what one text cache and one or more latent caches are made of."""

    dataset: Dataset
    path: Path
    caption: str
    controls: tuple[Path, ...] = ()
    media: str = "video"  # "image", "video" (one file) or "frames" (a folder of images)

    @property
    def stem(self) -> str:
        """First part of the names of its caches: the file's name without its last suffix."""
        return self.path.stem

    @property
    def key(self) -> tuple[int, str]:
        """What tells it from all others of a dataset file, in any process."""
        return self.dataset.index, str(self.path)


def sources(dataset: Dataset, *, say: Say | None = None) -> list[Source]:
    """All items of a dataset, sorted by path (a folder) or in order (a jsonl file).

    Raises DataError naming the first problem and the number of others. Reads captions, opens no media.
    """
    found, problems = survey(dataset)
    if problems:
        first = problems[0]
        others = "1 more problem" if len(problems) == 2 else f"{len(problems) - 1} more problems"
        more = f" ({others}; `dataset check` lists them all)" if len(problems) > 1 else ""
        raise DataError(first.message + more, first.hint)
    if say is not None:
        say(Log(message=f"{dataset.table}: {counted(len(found), dataset.kind)}"))
    return found


def survey(dataset: Dataset) -> tuple[list[Source], list[DataError]]:
    """All usable items, and every problem: nothing is raised. A problem may concern one item or the whole dataset."""
    problems: list[DataError] = []
    try:
        if dataset.source_jsonl is not None:
            found = _of_list(dataset, problems)
        else:
            found = _of_folder(dataset, problems)
        problems.extend(_same_stem(found, dataset))
    except DataError as error:
        return [], [*problems, error]
    return found, problems


def frame_files(folder: Path) -> tuple[Path, ...]:
    """The images of a folder that stands for a video, sorted by name. Raises DataError when there are none."""
    files = tuple(path for path in list_folder(folder) if path.suffix.lower() in suffixes.images())
    if not files:
        raise DataError(f"{folder}: there is no image in this folder of frames.", "Put the video's frames there.")
    return files


def list_folder(folder: Path, *, key: str = "") -> list[Path]:
    """The visible files of a folder, sorted by name. `key` is the setting that named it, for the message."""
    change = f"Correct {key}." if key else "Correct the path."
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file()]
    except FileNotFoundError as error:
        if key and folder.is_relative_to(Path.cwd()):  # most likely it was given as a relative path
            change += " A relative path counts from the current folder, else from the dataset file's."
        raise DataError(f"{folder}: there is no such folder.", change) from error
    except NotADirectoryError as error:
        raise DataError(f"{folder}: this is a file, but a folder is needed.", change) from error
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read ({error.strerror}).", "Check its permissions.") from error
    return [folder / name for name in sorted(names)]


def _of_folder(dataset: Dataset, problems: list[DataError]) -> list[Source]:
    folder = dataset.source_directory
    files = list_folder(folder, key=f"{dataset.kind}_directory in {dataset.table}")
    endings = suffixes.of_kind(dataset.kind)
    media = [path for path in files if path.suffix.lower() in endings and not _is_contact_sheet(path, dataset)]
    unread = [path for path in files if path.suffix.lower() == ".jxl" and dataset.kind == "image" and path not in media]
    if unread:
        count = "1 file" if len(unread) == 1 else f"{len(unread)} files"
        problems.append(
            DataError(
                f"{folder}: {count} in JPEG XL cannot be read without its plugin ({first_few(unread)}).",
                how_to_install("pillow_jxl"),
            )
        )
    foreign = [path for path in media if not is_utf_8(path.name)]
    if foreign:
        named = f"{len(foreign)} of {len(media)} {dataset.kind}s have names that are not UTF-8 ({first_few(foreign)})"
        problems.append(DataError(f"{folder}: {named}.", "Rename them: their caches could not be opened again."))
        media = [path for path in media if path not in foreign]
    elif not media:
        looked_for = " ".join(f"*{suffix}" for suffix in endings)
        found = f"found {len(files)} other files" if files else "found no file at all"
        raise DataError(
            f"{folder}: there is no {dataset.kind} in this folder; looked for {looked_for}; {found}.",
            f"Correct {dataset.kind}_directory in {dataset.table}.",
        )
    captions: dict[Path, str] = {}
    missing = []
    for path in media:
        try:
            captions[path] = _caption_of(path, dataset)
        except FileNotFoundError:
            missing.append(path)
        except DataError as error:
            problems.append(error)
    if missing:
        expected = missing[0].stem + dataset.caption_extension
        problems.append(
            DataError(
                f"{folder}: {len(missing)} of {len(media)} {dataset.kind}s have no caption: {first_few(missing)} "
                f"(expected {expected} beside {missing[0].name}).",
                f"Write the captions, move the files away, or correct caption_extension in {dataset.table}.",
            )
        )
    controls = _controls(dataset, list(captions), problems)
    return [
        Source(dataset=dataset, path=path, caption=caption, controls=controls[path], media=dataset.kind)
        for path, caption in captions.items()
        if path in controls
    ]


def _is_contact_sheet(path: Path, dataset: Dataset) -> bool:
    """Ours, among the images; one with a caption is the person's own."""
    sheet = contact_sheet_path(dataset.config_path)
    ours = path.name == sheet.name and path.resolve() == sheet.resolve()
    return ours and not path.with_name(path.stem + dataset.caption_extension).exists()


def _caption_of(path: Path, dataset: Dataset) -> str:
    """The caption beside a file. Raises FileNotFoundError when there is none, DataError when it cannot be read."""
    caption_path = path.with_name(path.stem + dataset.caption_extension)
    try:
        return caption_path.read_text(encoding="utf-8-sig").strip()  # as text: lines end alike on every system
    except UnicodeDecodeError as error:
        raise DataError(
            f"{caption_path}: the caption is not UTF-8 (byte {error.start}).", "Save it as UTF-8."
        ) from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(
            f"{caption_path}: the caption cannot be read ({error.strerror}).", "Check its permissions."
        ) from error


def _controls(dataset: Dataset, media: list[Path], problems: list[DataError]) -> dict[Path, tuple[Path, ...]]:
    """The controls of each file; files whose controls are missing are left out and reported."""
    if dataset.control_directory is None:
        return dict.fromkeys(media, ())
    find = _image_controls if dataset.kind == "image" else _video_controls
    found = find(dataset, media)
    count = _control_count(dataset)
    missing = [path for path in media if len(found[path]) < count]
    if missing:
        path = missing[0]
        looked_for = f"{path.stem}.* or {path.stem}_N.*" if dataset.kind == "image" else f"{path.name} or {path.stem}/"
        need = "a control" if count == 1 else f"{count} controls"
        problems.append(
            DataError(
                f"{dataset.control_directory}: {len(missing)} of {len(media)} {dataset.kind}s lack {need}: "
                f"{first_few(missing)} (looked for {looked_for}).",
                f"Add the files, or correct control_directory in {dataset.table}.",
            )
        )
    return {path: found[path][:count] for path in media if path not in missing}


def _control_count(dataset: Dataset) -> int:
    """How many controls an item has: one for each clean index that is declared, otherwise one."""
    return len(dataset.fp_1f_clean_indices) if dataset.kind == "image" and dataset.fp_1f_clean_indices else 1


def _image_controls(dataset: Dataset, media: list[Path]) -> dict[Path, tuple[Path, ...]]:
    """`stem.*` first, then `stem_N.*` by number; longer stems choose first, so that a_1.png's go to a_1, not to a."""
    files = list_folder(dataset.control_directory, key=f"control_directory in {dataset.table}")
    free = [path for path in files if path.suffix.lower() in suffixes.images()]
    found: dict[Path, tuple[Path, ...]] = {}
    for path in sorted(media, key=lambda path: len(path.name), reverse=True):
        ranked = {}
        for control in free:
            if control.stem == path.stem:
                ranked[control] = -1
            elif control.stem.startswith(path.stem + "_") and control.stem[len(path.stem) + 1 :].isdecimal():
                ranked[control] = int(control.stem[len(path.stem) + 1 :])
        found[path] = tuple(sorted(ranked, key=lambda control: (ranked[control], control.name)))
        free = [control for control in free if control not in ranked]
    return found


def _video_controls(dataset: Dataset, media: list[Path]) -> dict[Path, tuple[Path, ...]]:
    """The file of the same name, else a folder of frames named as the stem, else another video of the same stem."""
    folder = dataset.control_directory
    by_name = {path.name: path for path in list_folder(folder, key=f"control_directory in {dataset.table}")}
    by_stem = {path.stem: path for path in by_name.values() if path.suffix.lower() in suffixes.VIDEOS}
    found: dict[Path, tuple[Path, ...]] = {}
    for path in media:
        frames_folder = folder / path.stem
        control = by_name.get(path.name) or (frames_folder if os.path.isdir(frames_folder) else by_stem.get(path.stem))
        found[path] = (control,) if control else ()
    return found


def _of_list(dataset: Dataset, problems: list[DataError]) -> list[Source]:
    """The items that a jsonl file lists; a faulty line becomes a problem and is left out."""
    found = []
    for entry in jsonl.read(dataset.source_jsonl, kind=dataset.kind, problems=problems):
        media = "image" if dataset.kind == "image" else ("frames" if os.path.isdir(entry.path) else "video")
        controls = entry.controls[: _control_count(dataset)]
        source = Source(dataset=dataset, path=entry.path, caption=entry.caption, controls=controls, media=media)
        problems_here = list(_faults_of_entry(entry, source, dataset))
        problems.extend(problems_here)
        if not problems_here:
            found.append(source)
    with_controls = [source for source in found if source.controls]
    bare = [source.path for source in found if not source.controls]
    if with_controls and bare:
        raise DataError(
            f"{dataset.source_jsonl}: {len(bare)} of {len(found)} lines lack control_path: {first_few(bare)}.",
            "Give every line a control, or none of them.",
        )
    if not found and not problems:
        raise DataError(f"{dataset.source_jsonl}: the file lists no {dataset.kind}.", "Add a line for each item.")
    return found


def _faults_of_entry(entry: jsonl.Entry, source: Source, dataset: Dataset) -> Iterable[DataError]:
    where = f"{dataset.source_jsonl}: line {entry.line}"
    for path in (entry.path, *source.controls):
        if not os.path.exists(path):
            yield DataError(f"{where}: there is no file {path}.", "Correct the path in that line.")
    need = _control_count(dataset)
    if source.controls and len(source.controls) < need:
        yield DataError(
            f"{where}: {len(source.controls)} controls, {need} are needed (one for each of fp_1f_clean_indices).",
            "Add control_path_0, control_path_1 and so on to that line.",
        )


def _same_stem(found: list[Source], dataset: Dataset) -> Iterable[DataError]:
    """Items of equal name without suffix would share their caches: the later one would overwrite the first."""
    for stem, count in Counter(source.stem for source in found).items():
        if count > 1:
            paths = [str(source.path) for source in found if source.stem == stem]
            yield DataError(
                f"{dataset.table}: {' and '.join(paths)} would have the same cache file, named {stem}.",
                "Rename one of them, or put them into different datasets.",
            )
