"""What a person sees on the terminal."""

from __future__ import annotations

import io
import re

import pytest

from engine.contract.events import Artifact, Done, Event, Failed, Log, Metric, Preview, Progress, Stage, Warning_
from engine.screen import Screen

TEXT = "a :cat: [close-up] walks, [/bold] and [red] on cuda:x:"


@pytest.mark.parametrize(
    "event",
    [
        Log(message=TEXT), Warning_(message=TEXT), Stage(name="Reading", message=TEXT), Done(message=TEXT),
        Artifact(kind="video", path=TEXT), Failed(kind="input", message=TEXT, hint=TEXT),
    ],
    ids=lambda event: type(event).__name__,
)  # fmt: skip
def test_brackets_in_prompts_and_paths_are_shown(event, capsys):
    """Blissful Tuner's log takes them for markup and swallows them; rich makes pictures of words between colons."""
    Screen().show(event)
    out, err = capsys.readouterr()
    assert TEXT in " ".join((out + err).split())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def drawn(monkeypatch):
    """A screen on a terminal, and what stands there in the end: a bar that was wiped does not."""

    def lines(*events: Event) -> list[str]:
        terminal = Terminal()
        monkeypatch.setattr("sys.stderr", terminal)
        screen = Screen()
        for event in events:
            screen.show(event)
        screen.close()
        return standing(terminal.getvalue())

    return lines


def standing(written: str) -> list[str]:
    """The lines of a terminal after this was written to it."""
    rows, row, column = [""], 0, 0
    for piece in re.findall(r"\x1b\[A|\r|\n|[^\x1b\r\n]+", re.sub(r"\x1b\[\d*[mK]", "", written)):
        if piece == "\r":
            column = 0
        elif piece in ("\n", "\x1b[A"):
            row += 1 if piece == "\n" else -1
            rows += [""] * (row + 1 - len(rows))
        else:
            rows[row] = rows[row][:column].ljust(column) + piece + rows[row][column + len(piece) :]
            column += len(piece)
    return [text.rstrip() for text in rows]


def told(*events: Event, capsys) -> list[str]:
    """The lines on what is no terminal."""
    screen = Screen()
    for event in events:
        screen.show(event)
    return capsys.readouterr().err.splitlines()


def test_a_picture_that_was_saved_is_named_once(capsys):
    saved = Artifact(kind="contact sheet", path="a.png")
    assert told(saved, Preview(path="a.png"), Preview(path="b.png"), capsys=capsys) == [
        "  saved contact sheet: a.png", "  preview: b.png"
    ]  # fmt: skip


def test_a_stop_is_said_once(capsys):
    assert told(Done(message="Stopped after 20 steps: a.safetensors", stopped=True), capsys=capsys) == [
        "Stopped after 20 steps: a.safetensors"
    ]
    assert told(Done(message="Trained 5 steps: a.safetensors", stopped=True), capsys=capsys) == [
        "stopped  Trained 5 steps: a.safetensors"
    ]


def step(done: int, loss: float = 0.5) -> list[Event]:
    return [
        Metric(step=done, values={"loss/current": 9.0, "loss/average": loss}),
        Progress(done=done, total=300, unit="steps", rate=2.0, eta_s=(300 - done) / 2, label="Training"),
    ]


def validated(step: int) -> list[Event]:
    return [
        Progress(done=1, total=2, unit="clips", rate=0.5, eta_s=2, label="Validating"),
        Progress(done=2, total=2, unit="clips", rate=0.5, eta_s=0, label="Validating"),
        Metric(step=step, values={"loss/validation": 0.25}),
    ]


def test_a_bar_goes_on_after_what_interrupted_it(drawn) -> None:
    """Each validation would leave a broken piece of the training's bar on the terminal otherwise."""
    lines = drawn(*step(100), *validated(100), *step(101), *step(300))
    assert [line for line in lines if "Validating" in line] == []
    assert "  step 100: validation loss 0.2500" in lines
    (bar,) = [line for line in lines if "Training" in line]
    assert "300/300 steps" in bar and "2.00 steps/s, average loss 0.5000]" in bar


def test_rate_and_time_left_are_the_jobs_own(drawn) -> None:
    """A bar that begins at step 150, as after a resume, knows nothing of the time before."""
    lines = drawn(*step(150))
    assert any("150/300 steps" in line and "2.00 steps/s, 1:15 left, average loss 0.5000" in line for line in lines)


def test_what_is_over_at_once_leaves_no_line(drawn, capsys) -> None:
    quick = Progress(done=1, total=1, unit="prompts", rate=12.0, eta_s=0.0, label="encoding")
    slow = Progress(done=1, total=1, unit="prompts", rate=0.1, eta_s=0.0, label="encoding")
    assert "encoding" not in "".join(drawn(quick)) and "encoding" in "".join(drawn(slow))


def test_where_there_is_no_terminal_lines_say_the_same(capsys) -> None:
    quick = Progress(done=6, total=6, unit="clips", rate=9.0, eta_s=0.0, label="Validating")
    assert told(*step(150), quick, *validated(150), capsys=capsys) == [
        "  Training: 150/300 steps, 2.00 steps/s, 1:15 left, average loss 0.5000",
        "  Validating: 2/2 clips, 2.0 s/clip",
        "  step 150: validation loss 0.2500",
    ]


def test_an_empty_line_parts_what_is_said(capsys) -> None:
    assert told(Log(message="a"), Log(message=""), Log(message="b"), capsys=capsys) == ["  a", "", "  b"]
