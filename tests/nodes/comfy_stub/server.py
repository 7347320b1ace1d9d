"""Stands for ComfyUI's server: keeps what was sent."""

from __future__ import annotations

from typing import Any


class PromptServer:
    instance: PromptServer
    routes = None
    client_id = "page"

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []

    def send_sync(self, message: str, data: Any, sid: str | None = None) -> None:
        self.sent.append((message, data))

    def send_progress_text(self, text: str, node_id: str, sid: str | None = None) -> None:
        self.sent.append(("text", {"node": node_id, "text": text}))


PromptServer.instance = PromptServer()
