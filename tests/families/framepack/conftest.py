"""Small FramePack models, written once for all tests of the family."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.families.framepack import tiny

from .pieces import Encoders


@pytest.fixture(scope="session")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny.write_tiny_models(tmp_path_factory.mktemp("framepack models"))


@pytest.fixture(scope="session")
def encoders(paths: dict[str, Path]) -> Encoders:
    return Encoders(paths)
