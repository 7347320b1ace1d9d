"""A bar while weights come from disk: of every model of every family, once it takes a while."""

from __future__ import annotations

import pytest

from engine.contract.events import Progress, read
from engine.tasks import loading
from tests.tasks.conftest import FAMILIES

SMALL = ("--video_size", 48, 64, "--infer_steps", 1, "--device", "cpu", "--prompt", "a bar", "--seed", 1)


def bars(engine, models, family: str, *more: object) -> dict[str, list[Progress]]:
    """What was said of each model, by its label."""
    made = engine("generate", family, *models[family], *SMALL, "--blocks_to_swap", 1, "--events", *more)
    assert made.status == 0, made.err
    found: dict[str, list[Progress]] = {}
    for event in map(read, made.out.splitlines()):
        if isinstance(event, Progress) and event.unit == "MiB":
            found.setdefault(event.label, []).append(event)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_model_is_told_to_its_end(family, models, engine, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "QUIET_S", 0.0)
    monkeypatch.setattr(loading, "MIB", 1 << 10)  # of small models
    found = bars(engine, models, family, "--save_path", tmp_path)
    labels = {"Loading the DiT", "Loading the VAE", "Loading the text encoder", "Moving blocks to main memory"}
    assert labels <= found.keys()
    for label, said in found.items():
        assert said[-1].done == said[-1].total > 1, label
    (blocks,) = [event.total for event in found["Moving blocks to main memory"] if event.done == event.total]
    assert blocks < found["Loading the DiT"][-1].total


def test_what_takes_no_time_is_not_told(models, engine, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "QUIET_S", 600.0)
    assert bars(engine, models, "wan", "--save_path", tmp_path) == {}
