"""Musubi Tuner for ComfyUI: train LoRAs for video models and generate video with them, in nodes.

ComfyUI imports this file at its start, so nothing heavy and nothing of ComfyUI is imported before it asks for the
nodes. `nodes/` is the ComfyUI side, `engine/` does the work in an environment of its own, `web/` is the page's part.
"""

from __future__ import annotations

from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """The pack's nodes, for ComfyUI's V3 loader."""
    from .nodes.extension import Extension

    return Extension()
