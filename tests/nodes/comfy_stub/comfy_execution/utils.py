"""Stands for ComfyUI's execution context: none."""

from __future__ import annotations


def get_executing_context() -> None:
    return None
