"""Stands for ComfyUI's folder_paths: the functions that the nodes ask, on a folder that a test names."""

from __future__ import annotations

import os
from pathlib import Path

KINDS = ("diffusion_models", "vae", "text_encoders", "clip_vision", "loras", "vae_approx")
_base = Path("/nowhere")
models_dir = str(_base / "models")


def use(base: Path) -> None:
    global _base, models_dir
    _base, models_dir = base, str(base / "models")
    for name in (*(f"models/{kind}" for kind in KINDS), "input", "output", "datasets", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)


def get_folder_paths(kind: str) -> list[str]:
    if kind == "datasets":
        return [str(_base / "datasets")]
    if kind not in KINDS:
        raise KeyError(kind)
    return [str(_base / "models" / kind)]


def get_filename_list(kind: str) -> list[str]:
    found = []
    for folder in get_folder_paths(kind):
        for place, _, files in os.walk(folder, followlinks=True):
            found += [os.path.relpath(os.path.join(place, name), folder) for name in files]
    return sorted(found)


def get_full_path_or_raise(kind: str, name: str) -> str:
    for folder in get_folder_paths(kind):
        path = os.path.join(folder, os.path.relpath(os.path.join("/", name), "/"))
        if os.path.isfile(path):
            return path
    raise FileNotFoundError(name)


def get_input_directory() -> str:
    return str(_base / "input")


def get_output_directory() -> str:
    return str(_base / "output")


def get_system_user_directory(name: str) -> str:
    return str(_base / "user" / f"__{name}")
