"""Which files are taken for images and videos, by their names. Whoever only lists folders need not import what reads
them."""

from __future__ import annotations

import importlib.util

VIDEOS: tuple[str, ...] = (".mp4", ".webm", ".avi", ".mkv", ".mov", ".flv", ".wmv", ".m4v", ".mpg", ".mpeg")
_IMAGES: tuple[str, ...] = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif")
JXL_PLUGINS = ("pillow_jxl", "jxlpy")


def images() -> tuple[str, ...]:
    """Lower-case suffixes of the images that can be read here; `.jxl` only where a Pillow plugin for it exists."""
    return (*_IMAGES, ".jxl") if any(importlib.util.find_spec(name) for name in JXL_PLUGINS) else _IMAGES


def of_kind(kind: str) -> tuple[str, ...]:
    """Lower-case suffixes of what is read as a dataset's "image" or "video"."""
    return images() if kind == "image" else VIDEOS
