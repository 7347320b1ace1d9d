"""Telling how it goes: to a person (a bar on a terminal, plain lines elsewhere), to a program (JSON lines), to the log.

The JSON events have the names and fields of the engine's protocol, so ComfyUI's dialog reads both with one reader; the
few that are needed here are written by hand, because this package stands alone. Everything for a person goes to stderr:
stdout carries events or a command's result, nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import IO, Any

from .problems import Problem

PROTOCOL = 1
REDRAW_S = 0.2
PLAIN_LINE_S = 15.0
BAR_WIDTH = 24
KEPT_LOGS = 20


def duration(seconds: float) -> str:
    """`75` → `1:15`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Report:
    """One run's messages. Fractions are of the whole run, 0..1, and never go back."""

    def __init__(self, *, events: bool = False, screen: IO[str] | None = None, out: IO[str] | None = None) -> None:
        self._events = events
        self._screen = screen or sys.stderr or open(os.devnull, "w", encoding="utf-8")  # closed: `2>&-`
        self._out = out or sys.stdout
        self._live = not events and self._screen.isatty()
        self._started = time.monotonic()
        self._log: IO[str] | None = None
        self.log_path: Path | None = None
        self._drawn = 0
        self._last_s = 0.0
        self._fraction = 0.0
        self._title = ""
        self._emit("hello", protocol=PROTOCOL, version="", job="environment")

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def open_log(self, folder: Path, command: str) -> None:
        """Begin the full record. OSError when it cannot be written."""
        folder.mkdir(parents=True, exist_ok=True)
        for old in sorted(folder.glob("*.log"))[:-KEPT_LOGS]:
            old.unlink(missing_ok=True)
        self.log_path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{command}.log"
        self._log = open(self.log_path, "a", encoding="utf-8")

    def close(self) -> None:
        self._wipe()
        if self._log:
            self._log.close()
            self._log = None

    def stage(self, name: str, message: str) -> None:
        """A new part of the work begins."""
        self._title = message
        self._emit("stage", name=name, message=message)
        self._say(message, stamped=True)
        self._last_s = self.elapsed_s

    def progress(self, fraction: float, label: str = "") -> None:
        """How far the whole is, and what is being done."""
        self._fraction = max(self._fraction, min(fraction, 1.0))
        pause_s = REDRAW_S if self._live or self._events else PLAIN_LINE_S
        if self.elapsed_s - self._last_s < pause_s:
            return
        self._last_s = self.elapsed_s
        self._emit("progress", done=int(self._fraction * 100), total=100, unit="%", label=label or self._title)
        if self._live:
            self._draw(label)
        elif not self._events:
            percent = int(self._fraction * 100)
            print(f"{duration(self.elapsed_s):>8}  {percent:3d} %  {label}", file=self._screen, flush=True)

    def log(self, message: str) -> None:
        self._emit("log", message=message, level="info")
        self._say(message)

    def warning(self, message: str) -> None:
        self._emit("warning", message=message)
        self._say(f"warning: {message}")

    def record(self, line: str) -> None:
        """For the log file alone: what an installer says."""
        if self._log:
            try:
                self._log.write(f"{duration(self.elapsed_s)} | {line}\n")
                self._log.flush()
            except OSError:  # a full disk: what matters of it comes as a message, the log ends here
                self._log = None

    def done(self, message: str, *, stopped: bool = False) -> None:
        self._emit("done", message=message, stopped=stopped)
        self._say(message)

    def failed(self, problem: Problem) -> int:
        """The last message of a run that did not succeed; gives its exit status."""
        hint = problem.hint
        self._emit("failed", kind=problem.kind, message=problem.message, hint=hint)
        self._say(f"error: {problem.message}" + (f"\nhint:  {hint}" if hint else ""))
        if self.log_path and not self._events:
            print(f"log:   {self.log_path}", file=self._screen, flush=True)
        return problem.exit_status

    def _emit(self, event: str, **values: Any) -> None:
        if self._events:
            print(json.dumps({"event": event, **values}, ensure_ascii=False), file=self._out, flush=True)

    def _say(self, text: str, *, stamped: bool = False) -> None:
        self.record(text)
        if not self._events:
            self._wipe()
            print(f"{duration(self.elapsed_s):>8}  {text}" if stamped else text, file=self._screen, flush=True)

    def _draw(self, label: str) -> None:
        filled = int(self._fraction * BAR_WIDTH)
        bar = "#" * filled + "." * (BAR_WIDTH - filled)
        line = f"{duration(self.elapsed_s):>8}  [{bar}] {int(self._fraction * 100):3d} %  {label}"
        line = line[: shutil.get_terminal_size().columns - 1]
        self._screen.write("\r" + line + " " * (self._drawn - len(line)))
        self._screen.flush()
        self._drawn = len(line)

    def _wipe(self) -> None:
        if self._drawn:
            self._screen.write("\r" + " " * self._drawn + "\r")
            self._drawn = 0
