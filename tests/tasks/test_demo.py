"""The demo as its own command: what its steps' ends mean for it."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.contract.errors import EngineError
from engine.contract.events import Control
from engine.demo.one_clip import PASS, Losses, OneClip
from engine.tasks import demo


@pytest.mark.parametrize(("status", "expected"), [(2, 2), (3, 3), (4, 4), (70, 70), (-9, 70)])
def test_the_demo_ends_with_the_status_of_the_step_that_failed(
    status: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk or a bug in a step is no mistake in the demo's input, which 2 would say."""
    ended = contextlib.nullcontext(SimpleNamespace(wait=lambda: status))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: ended)
    with pytest.raises(EngineError, match="train wan") as caught:
        demo._run_step(["train", "wan"], lambda event: None, Control())
    assert caught.value.exit_status == expected


@pytest.mark.parametrize(("last", "status"), [(1.0, 0), (3.9, 70)])
def test_a_training_that_does_not_learn_one_clip_fails_the_demo(
    last: float, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one_clip = OneClip((), tmp_path / "learning", tmp_path / "still", tmp_path / "one_clip_loss.png")
    ends = {one_clip.learning: last, one_clip.still: 4.0}
    course = {path: Losses([4.0] * PASS + [end] * PASS, [(0, 4.0)]) for path, end in ends.items()}
    monkeypatch.setattr(demo, "read_losses", course.get)
    with contextlib.nullcontext() if status == 0 else pytest.raises(EngineError, match="smoothed loss"):
        assert demo._prove(one_clip, lambda event: None, Control()).startswith("One clip, 300 steps: loss -75 %")
    assert one_clip.chart.exists(), "the curves are there to be looked at, whatever they show"


def test_steps_of_another_familys_demo_are_not_taken_for_done(tmp_path: Path) -> None:
    demo.Progressed(tmp_path / "progress.json", "wan").add("3_train")
    assert demo.Progressed(tmp_path / "progress.json", "wan").done == ["3_train"]
    assert demo.Progressed(tmp_path / "progress.json", "hunyuan_video").done == []
