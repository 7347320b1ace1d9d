"""What the demo starts from."""

from __future__ import annotations

from pathlib import Path

from engine.contract import toml
from engine.demo.prepare import Prepared, prepare


def test_a_folder_that_is_ready_is_left_alone(prepared: Prepared) -> None:
    models = prepared.folder / "models"
    before = {path: path.stat().st_mtime_ns for path in models.iterdir()}
    assert prepare(prepared.folder).steps == prepared.steps
    assert {path: path.stat().st_mtime_ns for path in models.iterdir()} == before


def test_another_family_in_the_same_folder_gets_its_models(tmp_path: Path) -> None:
    """`demo` and then `demo --family hunyuan-video`, which both use the folder of the demo."""
    for family in ("wan", "hunyuan_video"):
        train = next(step for step in prepare(tmp_path, family).steps if step.verb == "train")
        assert train.family == family and Path(toml.load(train.file)["dit"]).is_file()
