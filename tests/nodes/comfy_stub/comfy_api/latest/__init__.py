"""Stands for comfy_api.latest: the V3 schema as far as the nodes use it, and what `/object_info` tells."""

from __future__ import annotations

from typing import Any

from . import io

__all__ = ["ComfyExtension", "InputImpl", "io"]


class ComfyExtension:
    """The base of a pack's extension."""

    async def on_load(self) -> None:
        pass


class _Video:
    def __init__(self, path: str):
        self.path = path

    def get_stream_source(self) -> str:
        return self.path


class InputImpl:
    """What makes a VIDEO."""

    @staticmethod
    def VideoFromFile(path: str) -> Any:
        return _Video(path)
