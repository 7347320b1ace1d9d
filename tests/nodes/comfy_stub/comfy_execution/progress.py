"""Stands for ComfyUI's progress registry: keeps what it was told."""

from __future__ import annotations

from typing import Any

told: list[tuple[str, float, float]] = []


class _State:
    def update_progress(self, node_id: str, value: float, max_value: float, image: Any) -> None:
        told.append((node_id, value, max_value))


def get_progress_state() -> _State:
    return _State()
