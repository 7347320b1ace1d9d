"""The script that measures full-size models, as far as it goes without a GPU (`--tiny` runs all of it)."""

from __future__ import annotations

import pytest
import torch

from engine.contract.cli import parse
from engine.data.batches import load_items
from engine.data.config import load_config
from engine.parts.weights import open_weights
from tests.gpu.full_size.__main__ import (
    CASES,
    command_of,
    predicted,
    step_of,
    step_times,
    tiny_case,
    with_prediction,
)
from tests.gpu.full_size.files import MODELS, config_of, tiny_metadata, write_dataset, write_models, write_random
from tests.layouts.checks import HERE, read_layout


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The small files of each family."""
    found = {}

    def files(name):
        model = MODELS[name]
        if model.family not in found:
            found[model.family] = write_models(model, tmp_path_factory.mktemp("models"), tiny=True, device="cpu")
        return found[model.family]

    return files


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_a_command_that_the_engine_takes(name, written, tmp_path):
    case = tiny_case(CASES[name])
    command = command_of(case, written(case.model), tmp_path, tiny=True, device="cpu")
    job = parse([str(word) for word in command])
    assert job is not None and job.name == f"{case.verb} {MODELS[case.model].command}"
    assert (job.values()["blocks_to_swap"] or 0) == (2 if case.mode == "swap" else 0)


@pytest.mark.parametrize("name", ["train-wan-1.3b-480x832x33/swap", "generate-framepack-640x640x37/bf16"])
def test_every_case_has_a_prediction(name, written, tmp_path):
    case = tiny_case(CASES[name])
    command = command_of(case, written(case.model), tmp_path, tiny=True, device="cpu")
    expected = predicted([str(word) for word in command])
    assert 0 <= expected < 1
    row = with_prediction({"peak_alloc_gib": 4.0, "peak_reserved_gib": 5.0}, 3.9)
    assert row["predicted_gib"] == 3.9 and row["predicted_to_measured"] == 0.975


@pytest.mark.parametrize("name", ["wan-1.3b", "hunyuan-video-13b", "framepack"])
def test_caches_are_what_training_wants(name, written, tmp_path):
    model = MODELS[name]
    file = write_dataset(model, tmp_path, config_of(model, written(name)["dit"]), size=(48, 64), frames=9, window=2)
    config = load_config(file, say=lambda event: None)
    (item,) = load_items(config, architecture=model.part("options").ARCHITECTURE, say=lambda event: None)
    assert model.part("model").check_cache(item.shapes) == ""


@pytest.mark.parametrize("name", MODELS)
def test_full_size_files_have_the_layouts_of_public_ones(name):
    model = MODELS[name]
    shapes = read_layout(HERE / f"{model.dit}.json.gz")
    variant = model.part("detect").detect(shapes, {})
    if model.task:
        model.part("detect").check_task(variant, model.task[1])
    assert model.part("detect").role_of(read_layout(HERE / f"{model.vae}.json.gz")) == "vae"


def test_random_weights_are_read_back(tmp_path):
    path = tmp_path / "some.safetensors"
    write_random(path, {"a.weight": (4, 64), "norm.weight": (3,), "a.bias": (4,)}, device="cpu", metadata={"x": "1"})
    file = open_weights(path, role="--dit")
    assert file.metadata["x"] == "1" and file.dtypes["a.weight"] == torch.bfloat16
    assert file.read("norm.weight").tolist() == [1, 1, 1] and not file.read("a.bias").any()
    assert 0.08 < file.read("a.weight").float().std() < 0.17


def test_step_times_are_read_off_events():
    assert list(step_times([(1.0, 1), (3.0, 2), (3.0, 2), (9.0, 5)])) == [2.0, 2.0]
    assert step_of({"event": "metric", "values": {"loss/current": 1.0}, "step": 3}) == 3
    assert step_of({"event": "progress", "unit": "steps", "done": 2, "label": "video 1 of 1"}) == 2
    assert step_of({"event": "progress", "unit": "frames", "done": 2, "label": "decoding"}) is None


def test_tiny_metadata_says_the_head_size():
    assert tiny_metadata(MODELS["framepack"]) == {"head_dim": "32"}
