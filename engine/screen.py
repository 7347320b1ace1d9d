"""Events drawn for a person at a terminal: bars, short coloured lines, one clear error.

Everything goes to stderr, so that what a command prints as its result (`--print_config`, `docs`) stays alone on
stdout. Where stderr is not a terminal, a bar is a plain line every few seconds. Rate and time left are the event's own,
since a bar cannot know what was done before it was drawn. What was over at once leaves no bar behind.
"""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.markup import escape
from tqdm import tqdm

from .contract.events import Artifact, Done, Event, Failed, Log, Metric, Preview, Progress, Stage, Warning_

PLAIN_PROGRESS_S = 10.0
SHORT_S = 2.0  # what takes less has told enough by being over
BAR = "  {desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{unit} [{elapsed}{postfix}]"
BAR_WITHOUT_END = "  {desc}{n_fmt}{unit} [{elapsed}{postfix}]"


def duration(seconds: float | None) -> str:
    """`75` → `1:15`, `4000` → `1:06:40`."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def was_short(event: Progress) -> bool:
    """Whether this is the end of something that hardly took time."""
    return event.done == event.total and bool(event.rate) and event.done < SHORT_S * (event.rate or 0.0)


def speed(rate: float, unit: str) -> str:
    """`3.40 steps/s`, or `4.2 s/step` where one takes longer than a second."""
    return f"{rate:.2f} {unit}/s" if rate >= 1 else f"{1 / rate:.1f} s/{unit.removesuffix('s')}"


class Screen:
    """Draws one job's events.

    Mostly there is one bar. What interrupts it, as validation does with a training, has its bar below, for its time.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
        self.live = sys.stderr.isatty()
        self._bars: list[tuple[str, tqdm]] = []  # by label; each has interrupted the one before it
        self._loss = ""
        self._last_plain_s = -PLAIN_PROGRESS_S
        self._saved = ""

    def show(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._progress(event)
        elif isinstance(event, Metric):
            self._metric(event)
        else:
            text = self._line(event)
            if text or event == Log(message=""):
                self._print(text)

    def close(self) -> None:
        while self._bars:
            self._bars.pop()[1].close()

    def _line(self, event: Event) -> str:
        if isinstance(event, Stage):
            self.close()
            self._loss = ""
            return f"[bold]{escape(event.name)}[/]" + (f"  {escape(event.message)}" if event.message else "")
        if isinstance(event, Log):
            return f"  {escape(event.message)}" if event.message and event.level != "debug" else ""
        if isinstance(event, Warning_):
            return f"[yellow]  warning:[/] {escape(event.message)}"
        if isinstance(event, Artifact):
            self._saved = event.path
            return f"[green]  saved {escape(event.kind)}:[/] {escape(event.path)}"
        if isinstance(event, Preview):
            known = event.path == self._saved  # the line before named it
            return f"  preview: {escape(event.path)}" if event.path and not event.passing and not known else ""
        if isinstance(event, Done):
            self.close()
            if event.stopped and event.message.startswith("Stopped"):  # it says so itself
                return f"[bold green]Stopped[/]{escape(event.message.removeprefix('Stopped'))}"
            word = "stopped" if event.stopped else "done"
            return f"[bold green]{word}[/]" + (f"  {escape(event.message)}" if event.message else "")
        if isinstance(event, Failed):
            self.close()
            hint = f"\n[bold]hint:[/]  {escape(event.hint)}" if event.hint else ""
            return f"[bold red]error:[/] {escape(event.message)}{hint}"
        return ""

    def _metric(self, event: Metric) -> None:
        if "loss/average" in event.values:
            self._loss = f"average loss {event.values['loss/average']:.4f}"
        if "loss/validation" in event.values:
            self._print(f"  step {event.step}: validation loss {event.values['loss/validation']:.4f}")

    def _progress(self, event: Progress) -> None:
        if not self.live:
            self._plain_progress(event)
            return
        bar = self._bar_of(event)
        bar.set_postfix_str(self._told(event), refresh=False)
        bar.update(event.done - bar.n)
        if event.done == event.total:
            bar.leave = len(self._bars) == 1 and not was_short(event)
            bar.close()
            self._bars.pop()

    def _bar_of(self, event: Progress) -> tqdm:
        """A new bar, or the one that this event's label has already, which ends those that interrupted it."""
        if event.label in [label for label, _ in self._bars]:
            while self._bars[-1][0] != event.label:
                self._drop()
            bar = self._bars[-1][1]
            if event.done >= bar.n:
                return bar
            self._drop()
        bar = tqdm(
            total=event.total,
            initial=event.done,
            unit=f" {event.unit}",
            desc=f"{event.label}: " if event.label else None,
            bar_format=BAR if event.total else BAR_WITHOUT_END,
            dynamic_ncols=True,
            file=sys.stderr,
        )
        self._bars.append((event.label, bar))
        return bar

    def _drop(self) -> None:
        """Wipe the last bar: what it counted has ended without a word, or begins anew."""
        _, bar = self._bars.pop()
        bar.leave = False
        bar.close()

    def _told(self, event: Progress) -> str:
        """Rate, time left, loss."""
        last = event.done == event.total
        rate = speed(event.rate, event.unit) if event.rate else ""
        left = f"{duration(event.eta_s)} left" if event.eta_s is not None and not last else ""
        loss = self._loss if event.unit == "steps" else ""
        return ", ".join(part for part in (rate, left, loss) if part)

    def _plain_progress(self, event: Progress) -> None:
        now = time.monotonic()
        last = event.done == event.total
        if was_short(event) or (now - self._last_plain_s < PLAIN_PROGRESS_S and not last):
            return
        self._last_plain_s = now
        label = f"{event.label}: " if event.label else ""
        total = f"/{event.total}" if event.total is not None else ""
        told = self._told(event)
        self._print(f"  {escape(label)}{event.done}{total} {escape(event.unit)}{escape(f', {told}' if told else '')}")

    def _print(self, text: str) -> None:
        with tqdm.external_write_mode(file=sys.stderr):
            self.console.print(text)
