"""Events drawn for a person at a terminal: bars, short coloured lines, one clear error.

Everything goes to stderr, so that what a command prints as its result (`--print_config`, `docs`) stays alone on
stdout. Where stderr is not a terminal, a bar is a plain line every few seconds.
"""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.markup import escape
from tqdm import tqdm

from .contract.events import Artifact, Done, Event, Failed, Log, Metric, Preview, Progress, Stage, Warning_

PLAIN_PROGRESS_S = 10.0


def duration(seconds: float | None) -> str:
    """`75` → `1:15`, `4000` → `1:06:40`."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Screen:
    """Draws one job's events. At most one bar is open at a time: a job does one thing at a time."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.live = sys.stderr.isatty()
        self._bar: tqdm | None = None
        self._label = ""
        self._postfix = ""
        self._last_plain_s = -PLAIN_PROGRESS_S

    def show(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._progress(event)
        elif isinstance(event, Metric):
            self._metric(event)
        else:
            text = self._line(event)
            if text:
                self._print(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _line(self, event: Event) -> str:
        if isinstance(event, Stage):
            self.close()
            self._postfix = ""
            return f"[bold]{escape(event.name)}[/]" + (f"  {escape(event.message)}" if event.message else "")
        if isinstance(event, Log):
            return f"  {escape(event.message)}" if event.level != "debug" else ""
        if isinstance(event, Warning_):
            return f"[yellow]  warning:[/] {escape(event.message)}"
        if isinstance(event, Artifact):
            return f"[green]  saved {escape(event.kind)}:[/] {escape(event.path)}"
        if isinstance(event, Preview):
            return f"  preview: {escape(event.path)}" if event.path else ""
        if isinstance(event, Done):
            self.close()
            word = "stopped" if event.stopped else "done"
            return f"[bold green]{word}[/]" + (f"  {escape(event.message)}" if event.message else "")
        if isinstance(event, Failed):
            self.close()
            hint = f"\n[bold]hint:[/]  {escape(event.hint)}" if event.hint else ""
            return f"[bold red]error:[/] {escape(event.message)}{hint}"
        return ""

    def _metric(self, event: Metric) -> None:
        loss = event.values.get("loss/average", event.values.get("loss"))
        if loss is not None:
            self._postfix = f"loss {loss:.4f}"

    def _progress(self, event: Progress) -> None:
        if not self.live:
            self._plain_progress(event)
            return
        if self._bar is None or self._label != event.label or event.done < self._bar.n:
            self.close()
            self._label = event.label
            self._bar = tqdm(
                total=event.total, unit=f" {event.unit}", desc=f"  {event.label}" if event.label else None, leave=True,
                dynamic_ncols=True, file=sys.stderr,
            )  # fmt: skip
        if self._postfix:
            self._bar.set_postfix_str(self._postfix, refresh=False)
        self._bar.update(event.done - self._bar.n)
        if event.total is not None and event.done >= event.total:
            self.close()

    def _plain_progress(self, event: Progress) -> None:
        now = time.monotonic()
        last = event.total is not None and event.done >= event.total
        if now - self._last_plain_s < PLAIN_PROGRESS_S and not last:
            return
        self._last_plain_s = now
        rate = f", {event.rate:.2f} {event.unit}/s" if event.rate else ""
        left = f", {duration(event.eta_s)} left" if event.eta_s and not last else ""
        label = f"{event.label}: " if event.label else ""
        postfix = f", {self._postfix}" if self._postfix else ""
        total = f"/{event.total}" if event.total is not None else ""
        self._print(f"  {escape(label)}{event.done}{total} {escape(event.unit)}{rate}{left}{postfix}")

    def _print(self, text: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        self.console.print(text)
        if self._bar is not None:
            self._bar.refresh()
