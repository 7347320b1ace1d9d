"""What the tests of several tasks share."""

from __future__ import annotations

import pytest

from engine.families import names, part

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
