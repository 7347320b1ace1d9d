"""Which folders a workflow may reach, and where the nodes put their results.

Model files are names from ComfyUI's lists. Data is in ComfyUI's datasets, input and output folders and in the folders
that the person allowed on the server. Links are followed before a path is checked, so a link that leads out of these
folders is refused. The name of a folder is written `<root>/<path in it>`, the same on every system.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ..engine.contract.errors import DataError, OptionError
from . import host, preferences
from .spec import NONE

MODEL_FOLDERS = {
    "dit": "diffusion_models",
    "vae": "vae",
    "text_encoder": "text_encoders",
    "clip_vision": "clip_vision",
    "lora": "loras",
    "vae_approx": "vae_approx",
}
"""The kind of a model file, as options declare it → ComfyUI's name of the folder."""
OURS = "musubi"
DEMO = "musubi_demo"
"""The folder of the demo's models and clips. It can be deleted as a whole."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".gif", ".mpg", ".mpeg", ".wmv")
DATASET_SUFFIXES = (".toml", ".json")
LONGEST_NAME = 200
"""In bytes: disks take 255, and an ending is added."""
LISTING_S = 3.0
DEPTH = 4
MOST_FOLDERS = 2000

# ------------------------------------------------------------------------------------------------------- model files


def model_files(kind: str) -> list[str]:
    """The files of a kind that ComfyUI lists, after "none"."""
    return [NONE, *host.folder_paths().get_filename_list(MODEL_FOLDERS[kind])]


def model_file(kind: str, name: str) -> str:
    """The path of a file by its name in ComfyUI's list. OptionError for any other name."""
    table, folder = host.folder_paths(), MODEL_FOLDERS[kind]
    if name not in table.get_filename_list(folder):
        raise OptionError(
            f"There is no {kind} file {name[:200]!r} in ComfyUI's {folder} folder.",
            hint="Put the file there and press R, or choose another one.",
        )
    return str(table.get_full_path_or_raise(folder, name))


# ------------------------------------------------------------------------------------------------------ data folders


def roots() -> dict[str, Path]:
    """The folders that data may be in, by the name that a workflow uses."""
    table = host.folder_paths()
    found: dict[str, Path] = {}
    try:
        datasets = table.get_folder_paths("datasets")
    except KeyError:  # ComfyUI before July 2026 has no such folder
        datasets = []
    for number, folder in enumerate(datasets):
        found["datasets" if number == 0 else f"datasets{number + 1}"] = Path(folder)
    found["input"], found["output"] = Path(table.get_input_directory()), Path(table.get_output_directory())
    for folder in preferences.load().roots:
        name = base = Path(folder).name or "root"
        number = 1
        while name in found:
            number += 1
            name = f"{base}{number}"
        found[name] = Path(folder)
    return found


def inside(path: Path) -> Path:
    """The real path, all links followed, if it is in an allowed folder. OptionError otherwise."""
    real = Path(os.path.realpath(path))
    for root in roots().values():
        if real.is_relative_to(os.path.realpath(root)):
            return real
    raise OptionError(
        f"{str(path)[:300]} is outside the folders that workflows may use.",
        hint="Move it into ComfyUI's datasets, input or output folder, or allow its folder in the settings of "
        "Musubi Tuner on the server.",
    )


def named(name: str) -> Path:
    """The real path of `<root>/<path>`. OptionError: it is not such a name, or leads outside."""
    root, _, rest = name.partition("/")
    place = roots().get(root)
    parts = PurePosixPath(rest).parts
    if place is None or "\0" in name or "\\" in name or ".." in parts or rest.startswith("/") or ":" in rest:
        raise OptionError(
            f"{name[:300]!r} names no folder or file that workflows may use.", hint="Choose from the list."
        )
    return inside(place.joinpath(*parts))


def anywhere(text: str) -> Path:
    """The real path of what a dataset text or a prompt line names: absolute, or in one of the roots. OptionError."""
    if not text.strip() or "\0" in text or text.startswith(("\\\\", "//")):
        raise OptionError(
            f"{text[:300]!r} is not a path that workflows may use.", hint="Name a file in the input folder."
        )
    given = Path(text)
    if given.is_absolute():
        return inside(given)
    root, _, rest = text.replace(os.sep, "/").partition("/")
    known = roots()
    places = [known[root] / rest] if root in known else []
    places += [folder / given for folder in known.values()]
    return inside(next((place for place in places if place.exists()), places[0]))


_listed: dict[str, tuple[float, list[str]]] = {}


def _remembered(key: str, names: Iterator[str]) -> list[str]:
    """The list, made again every LISTING_S at most: ComfyUI asks for it several times for each prompt."""
    made, found = _listed.get(key, (-LISTING_S, []))
    if time.monotonic() - made > LISTING_S:
        found = sorted(names, key=str.lower)
        _listed[key] = (time.monotonic(), found)
    return found


def media_folders() -> list[str]:
    """Names of the allowed folders that hold images or videos, after "none"."""
    return [NONE, *_remembered("media", _media_folders())]


def _media_folders() -> Iterator[str]:
    for label, root in roots().items():
        for name, entries in _walk(label, root):
            if any(entry.name.lower().endswith((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)) for entry in entries):
                yield name


def dataset_files() -> list[str]:
    """Names of the dataset files in the allowed folders, after "none"."""
    return [NONE, *_remembered("datasets", _files(DATASET_SUFFIXES))]


def video_files() -> list[str]:
    """Names of the videos in the allowed folders, after "none"."""
    return [NONE, *_remembered("videos", _files(VIDEO_SUFFIXES))]


def _files(suffixes: tuple[str, ...]) -> Iterator[str]:
    for label, root in roots().items():
        for name, entries in _walk(label, root):
            yield from (f"{name}/{entry.name}" for entry in entries if entry.name.lower().endswith(suffixes))


def _walk(label: str, root: Path) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """(name, files) of the folders below a root, not deeper than DEPTH; without hidden ones, linked ones and our
    own."""
    waiting, seen = [(label, root, 0)], 0
    while waiting and seen < MOST_FOLDERS:
        name, folder, depth = waiting.pop()
        seen += 1
        try:
            entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        except OSError:
            continue  # deleted meanwhile, or not readable: it is not offered
        yield name, [entry for entry in entries if entry.is_file()]
        if depth < DEPTH:
            below = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
            waiting += [
                (f"{name}/{entry.name}", Path(entry.path), depth + 1)
                for entry in below
                if not (depth == 0 and label == "output" and entry.name == OURS)
            ]


# ----------------------------------------------------------------------------------------------- states of trainings

AUTO = "auto"


def states() -> list[str]:
    """What a training can resume from: what the engine finds by itself, or a state by name, newest first."""
    found = [place for place in (work() / "train").glob("*/*-state") if (place / "progress.json").is_file()]
    found.sort(key=lambda place: place.stat().st_mtime, reverse=True)
    return [AUTO, *(f"{place.parent.name}/{place.name}" for place in found)]


def state_folder(name: str) -> str:
    """The folder of a state by its name in the list; "auto" is left to the engine."""
    if name == AUTO:
        return AUTO
    if name not in states():
        raise OptionError(f"There is no state {name[:200]!r}.", hint="Press R to read the folders again, and choose.")
    return str(work() / "train" / name)


# ------------------------------------------------------------------------------------------------------- our results


def work() -> Path:
    """The folder for everything that runs leave behind, in ComfyUI's output folder."""
    return Path(host.folder_paths().get_output_directory()) / OURS


def jobs() -> Path:
    return work() / "jobs"


def private() -> Path:
    """The folder for what no web page may read or write: settings, and which results exist."""
    return Path(host.folder_paths().get_system_user_directory(OURS))


def training(name: str) -> Path:
    """The folder of a training: LoRA files, states, samples, loss curve."""
    return work() / "train" / safe_name(name, "output_name")


def cache_of(folder: Path) -> Path:
    """Where the caches of a data folder are."""
    return work() / "cache" / f"{folder.name}-{short_hash(str(folder))}"


def result_folder(kind: str) -> Path:
    """Our folder in the first writable one of ComfyUI's folders for a kind of model file. DataError: there is none."""
    name = MODEL_FOLDERS[kind]
    listed = [Path(folder) for folder in host.folder_paths().get_folder_paths(name)]
    listed = [folder for folder in listed if folder.parent.name != DEMO]
    listed.sort(key=lambda folder: folder.name != name)  # models/unet is an older name of models/diffusion_models
    for folder in listed:
        if folder.is_dir() and os.access(folder, os.W_OK):
            return folder / OURS
    raise DataError(f"ComfyUI has no {name} folder that can be written to.", "Create it, or check its permissions.")


def safe_name(name: str, where: str) -> str:
    """`name` if it is a plain file name on every system. OptionError that names `where`."""
    reserved = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
    bad = not name.strip(". ") or name != name.strip() or len(name) > 100 or name.startswith((".", "-"))
    bad = bad or len(name.encode("utf-8", "replace")) > LONGEST_NAME
    if (
        bad
        or any(sign in '/\\:*?"<>|' or ord(sign) < 32 for sign in name)
        or name.partition(".")[0].lower() in reserved
    ):
        raise OptionError(
            f"{where} {name[:120]!r} is not a file name.", hint="Use a plain name such as my-lora.", names=(where,)
        )
    return name


def prefix(text: str, where: str) -> Path:
    """The path below the output folder that a name like `video/cat` stands for, without an ending. OptionError."""
    parts = text.strip().replace("\\", "/").split("/")
    names = [safe_name(part, where) for part in parts]
    return inside(Path(host.folder_paths().get_output_directory()).joinpath(*names))


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
