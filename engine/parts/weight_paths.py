"""From what a person typed to the weight files that it stands for, in shard order.

Accepts one `.safetensors`, shards (a folder, the index file, or any one shard), a diffusers folder, PyTorch files.

Standard library only, so that the planner can read headers at once. Knows nothing of what is in the files.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..contract.errors import WeightsError
from ..contract.missing import missing_file_hint
from ..contract.wording import first_few

PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_PIPELINE_FOLDERS = {
    "--dit": "transformer",
    "--dit_high_noise": "transformer",
    "--vae": "vae",
    "--t5": "text_encoder",
    "--text_encoder1": "text_encoder",
    "--text_encoder2": "text_encoder_2",
    "--clip": "image_encoder",
    "--image_encoder": "image_encoder",
}
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.[a-z]+)")
DOWNLOAD_HINT = "Download the file again and compare its size with the one on the download page."


def find_files(path: Path, *, role: str) -> list[Path]:
    """The weight files that `path` stands for, in shard order.

    WeightsError: there is nothing there, several files could be meant, or a shard is missing.
    """
    try:
        if path.is_dir():
            return _files_in_folder(path, role=role)
        if not path.exists():
            raise _missing(path, role=role)
    except PermissionError as error:
        raise WeightsError(f"{role}: {path} cannot be read: permission denied.", "Change its permissions.") from error
    if path.name.endswith(".index.json"):
        return _files_in_index(path, role=role)
    if path.suffix.lower() != ".safetensors" and path.suffix.lower() not in PICKLE_SUFFIXES:
        raise WeightsError(
            f"{role}: {path.name} is not a known kind of weight file (suffix {path.suffix or 'none'}).",
            "Give a .safetensors file (or .pt, .pth, .bin), a folder of shards, or a *.safetensors.index.json.",
        )
    if found := _SHARD.fullmatch(path.name):
        count = int(found["count"])
        names = [f"{found['stem']}-{index:05d}-of-{count:05d}{found['suffix']}" for index in range(1, count + 1)]
        return _all_present([path.with_name(name) for name in names], whole=path.name, role=role)
    return [path]


def _files_in_folder(folder: Path, *, role: str) -> list[Path]:
    part = _PIPELINE_FOLDERS.get(role)
    if part and (folder / "model_index.json").exists() and (folder / part).is_dir():
        if role == "--dit" and (folder / "transformer_2").is_dir():
            part = "transformer_2"  # the expert for low noise, in diffusers' WanPipeline
        return _files_in_folder(folder / part, role=role)
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    plain = [path for path in indexes if path.name.count(".") == 3] or indexes
    if len(plain) == 1:
        return _files_in_index(plain[0], role=role)
    if indexes:
        raise _several(folder, indexes, role=role)
    candidates = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".safetensors")
    if not candidates:
        candidates = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICKLE_SUFFIXES)
    wholes = {(match["stem"], match["count"]) if (match := _SHARD.fullmatch(c.name)) else c for c in candidates}
    if not candidates:
        raise WeightsError(
            f"{role}: the folder {folder} contains no weight file.",
            "Give the folder that holds the .safetensors files, or one such file.",
        )
    if len(wholes) > 1:
        raise _several(folder, candidates, role=role)
    return find_files(candidates[0], role=role)


def _files_in_index(path: Path, *, role: str) -> list[Path]:
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightsError(f"{role}: {path.name} is not a weight index (no weight_map).", DOWNLOAD_HINT) from error
    return _all_present([path.parent / name for name in names], whole=path.name, role=role)


def _all_present(paths: list[Path], *, whole: str, role: str) -> list[Path]:
    absent = [path.name for path in paths if not path.exists()]
    if absent:
        raise WeightsError(
            f"{role}: {whole} needs {len(paths)} parts, of which {len(absent)} cannot be found ({first_few(absent)}).",
            f"Put all parts in {paths[0].parent}.",
        )
    return paths


def _several(folder: Path, paths: list[Path], *, role: str) -> WeightsError:
    names = first_few(paths, count=6)
    return WeightsError(
        f"{role}: the folder {folder} has several weight files ({names}).",
        "Give one of them instead of the folder.",
    )


def _missing(path: Path, *, role: str) -> WeightsError:
    near = missing_file_hint(path)
    if near:
        return WeightsError(f"{role}: no such file: {path}", near)
    names = sorted(child.name for child in path.parent.iterdir())
    others = [name for name in names if name.lower().endswith((".safetensors", *PICKLE_SUFFIXES))]
    where = path.parent.resolve()  # a name without a folder is relative to the current folder
    shown = first_few(others, count=5)
    known = f"The weight files in {where}: {shown}." if others else f"There is no weight file in {where}."
    return WeightsError(f"{role}: no such file: {path}", known)
