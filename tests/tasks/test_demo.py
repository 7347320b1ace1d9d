"""The demo as its own command: what its steps' ends mean for it."""

from __future__ import annotations

import contextlib
import subprocess
from types import SimpleNamespace

import pytest

from engine.contract.errors import EngineError
from engine.contract.events import Control
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
