"""What the tests of several tasks share."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.families import names, part
from engine.memory.estimate import GIB
from engine.tasks import fitting, planned_weights
from tests.tasks.planned_jobs import write_headers

FAMILIES = names(extra=False)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The flags that name each family's small models and the shortest video."""
    found = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp(family)
        tiny = part(family, "tiny")
        tiny.write_tiny_models(folder)
        options = tiny.tiny_model_options(folder)["generate"]
        options |= {"video_sections": 1} if family == "framepack" else {"video_length": 5}
        found[family] = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    return found


@pytest.fixture(scope="session")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of public models' files without their weights (planned_jobs.py)."""
    return write_headers(tmp_path_factory.mktemp("headers"))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What jobs are planned for: no GPU but the one that --vram names, much main memory and disk, Triton."""
    for module in (fitting, planned_weights):
        monkeypatch.setattr(module, "find_card", lambda device: None)
    monkeypatch.setattr(fitting, "main_memory", lambda: 128 * GIB)
    monkeypatch.setattr(fitting, "scratch_free", lambda: 1000 * GIB)
    monkeypatch.setattr(planned_weights, "has_triton", lambda: True)
