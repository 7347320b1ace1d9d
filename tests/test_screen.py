"""What a person sees on the terminal."""

from __future__ import annotations

import pytest

from engine.contract.events import Artifact, Done, Failed, Log, Stage, Warning_
from engine.screen import Screen

TEXT = "a cat [close-up] walks, [/bold] and [red]"


@pytest.mark.parametrize(
    "event",
    [
        Log(message=TEXT), Warning_(message=TEXT), Stage(name="Reading", message=TEXT), Done(message=TEXT),
        Artifact(kind="video", path=TEXT), Failed(kind="input", message=TEXT, hint=TEXT),
    ],
    ids=lambda event: type(event).__name__,
)  # fmt: skip
def test_brackets_in_prompts_and_paths_are_shown(event, capsys):
    """Blissful Tuner's log takes them for markup and swallows them."""
    Screen().show(event)
    out, err = capsys.readouterr()
    assert TEXT in " ".join((out + err).split())
