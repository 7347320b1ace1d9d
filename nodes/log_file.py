"""The log of a running job, for a person: events and stray lines as text, appended to `log.txt`.

The engine's loggers append to the same file, so whole lines are written at once. aiofiles writes if ComfyUI's Python
has it, else a thread: a slow disk never holds up reading the engine's output. Knows events; starts nothing.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from ..engine.contract.events import Artifact, Done, Event, Failed, Log, Stage, Warning_

MOST_BYTES = 16 << 20


def as_text(event: Event) -> str:
    """An event as a line of the log; "" for one that is not logged."""
    if isinstance(event, Stage):
        return f"== {event.name}" + (f": {event.message}" if event.message else "")
    if isinstance(event, Log):
        return event.message if event.level in ("info", "debug") else f"{event.level}: {event.message}"
    if isinstance(event, Warning_):
        return f"warning: {event.message}"
    if isinstance(event, Artifact):
        return f"saved {event.kind}: {event.path}"
    if isinstance(event, Done):
        return f"{'stopped' if event.stopped else 'done'}: {event.message}".rstrip(": ")
    if isinstance(event, Failed):
        return f"error: {event.message}" + (f"\nhint:  {event.hint}" if event.hint else "")
    return ""


class LogFile:
    """Collects lines and appends them. A disk error ends the log, not the job."""

    def __init__(self, path: Path | None):
        self._path = path
        self._waiting: list[str] = []
        self._bytes = 0

    def event(self, event: Event) -> None:
        text = as_text(event)
        if text:
            self.line(f"{time.strftime('%H:%M:%S')} {text}")

    def line(self, text: str) -> None:
        if self._path is None or self._bytes > MOST_BYTES:
            return
        self._bytes += len(text) + 1
        if self._bytes > MOST_BYTES:
            text += f"\n[the log ends here: more than {MOST_BYTES >> 20} MiB were written]"
        self._waiting.append(text + "\n")

    async def flush(self) -> None:
        """Append what has been collected."""
        if not self._waiting or self._path is None:
            return
        text = "".join(self._waiting)
        self._waiting.clear()
        try:
            await _append(self._path, text)
        except OSError:
            self._path = None

    async def close(self) -> None:
        await self.flush()


async def _append(path: Path, text: str) -> None:
    try:
        import aiofiles
    except ImportError:
        await asyncio.get_running_loop().run_in_executor(None, _append_now, path, text)
        return
    async with aiofiles.open(path, "a", encoding="utf-8", errors="replace", newline="\n") as stream:
        await stream.write(text)


def _append_now(path: Path, text: str) -> None:
    with open(path, "a", encoding="utf-8", errors="replace", newline="\n") as stream:
        stream.write(text)
