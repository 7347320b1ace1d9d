"""The demo puts exactly what the shipped workflows name where ComfyUI finds it."""

from __future__ import annotations

import importlib
import json
import threading
import time
from pathlib import Path

import pytest

from engine.contract import toml
from engine.demo.prepare import LORA, Prepared, prepare

from .conftest import PACK, PATIENCE_S, Engine, folder_dataset, part, run_node, until, wan_models

FAMILIES = ("wan", "hunyuan_video", "framepack")


def made(family: str, folder: Path) -> Prepared:
    """A demo folder after its training: the LoRAs that its job file asks for are there, and empty."""
    ready = prepare(folder, family)
    training = toml.load(folder / "3_train.toml")
    steps, every = training["max_train_steps"], training["save_every_n_steps"]
    ready.lora.parent.mkdir()
    for name in (LORA, *(f"{LORA}-step{step:08d}" for step in range(every, steps, every))):
        (ready.lora.parent / f"{name}.safetensors").write_bytes(b"")
    return ready


@pytest.fixture
def put(comfy: Path, tmp_path_factory: pytest.TempPathFactory) -> set[Path]:
    """Where the files of all families go, below ComfyUI's base folder."""
    demo, found = part("nodes.demo"), set()
    for family in FAMILIES:
        folder = made(family, tmp_path_factory.mktemp(family)).folder
        pairs = [*demo._model_files(folder, family), *demo._loras(folder, family), *demo._clip_files(folder)]
        assert all(source.is_file() for source, _ in pairs)
        found |= {target.relative_to(comfy) for _, target in pairs}
    return found


def test_every_file_of_the_demo_that_a_shipped_workflow_names_is_put_there(put: set[Path]) -> None:
    names, folders = {path.name for path in put}, {path.parent.as_posix() for path in put}
    checked = 0
    for workflow in sorted((PACK / "workflows").glob("*.json")):
        for node in json.loads(workflow.read_text(encoding="utf-8"))["nodes"]:
            for option, value in (node.get("widgets_values_named") or {}).items():
                if not isinstance(value, str) or "musubi_demo" not in value:
                    continue
                if value.endswith((".safetensors", ".pth")):
                    assert value in names, f"{workflow.name}: {option}"
                elif option == "source.folder":
                    assert value in folders, f"{workflow.name}: {option}"
                elif value.endswith(".mp4"):
                    assert Path(value) in put, f"{workflow.name}: {option}"
                else:
                    continue
                checked += 1
    assert checked > 20


def test_a_family_with_a_trained_model_has_clips_of_its_own(put: set[Path]) -> None:
    """A dataset is a folder, and all that lies in it is trained on."""
    clips = [path for path in put if path.suffix == ".mp4"]
    assert {path.parent.name for path in clips} == {"striped_hexagons"} and len(clips) == 8


def test_a_text_encoder_finds_its_tokenizer_there(put: set[Path]) -> None:
    encoders = {path.parent for path in put if path.name.endswith("_text_encoder2.safetensors")}
    tokenizers = {path.parent.parent for path in put if path.as_posix().endswith("tokenizer_2/tokenizer.json")}
    assert encoders and encoders == tokenizers


def test_it_says_where_it_lies_in_words_that_differ(comfy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = part("nodes.demo")
    monkeypatch.setattr(demo, "_of_family", lambda *_: None)
    run = demo.make()
    until(lambda: run.state == "done")
    assert run.message == "In models/musubi_demo and input/musubi_demo."


WAITS = "Waiting for another run to give up the GPU."


def test_it_waits_for_the_run_that_is_on_the_gpu(comfy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo, gpu, held = part("nodes.demo"), part("nodes.run").gpu, []
    monkeypatch.setattr(demo, "_of_family", lambda *_: held.append(gpu.locked()))
    with gpu:
        run = demo.make()
        assert until(lambda: run.message == WAITS) and run.state == "waiting"
        assert demo.make() is run, "pressed twice, it is one"
        time.sleep(0.3)
        assert held == []
    assert until(lambda: run.state == "done") and held == [True] * len(FAMILIES)
    assert until(lambda: not gpu.locked())


@pytest.mark.parametrize("command", ["cancel", "stop"])
def test_it_can_be_cancelled_while_it_waits(comfy: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    demo, answers = part("nodes.demo"), part("nodes.answers")
    monkeypatch.setattr(demo, "_of_family", lambda *_: pytest.fail("it was cancelled"))
    with part("nodes.run").gpu:
        run = demo.make()
        assert until(lambda: run.message == WAITS)
        answers.command(answers.Asked(run=run.id, body={"command": command}))
        assert until(lambda: run.state == "failed")
    assert run.error is not None and run.error["message"] == "The demo was stopped before it was complete."


def test_a_node_waits_for_the_demo_and_an_engine_that_stayed_leaves_for_it(
    models: Path, obliging: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo, jobs = part("nodes.demo"), part("nodes.jobs")
    at_work, go_on, cleared = threading.Event(), threading.Event(), []
    monkeypatch.setattr(demo, "_of_family", lambda *_: (at_work.set(), go_on.wait(PATIENCE_S)))
    monkeypatch.setattr(jobs.bench, "clear", lambda: cleared.append(True))
    run = demo.make()
    assert at_work.wait(PATIENCE_S) and cleared == [True]
    node = threading.Thread(target=lambda: run_node("VAELatentCache", dataset=folder_dataset(), models=wan_models()))
    node.start()
    assert until(lambda: WAITS in [summary["message"] for summary in jobs.runs.summaries(run.folder.parent)])
    assert obliging.starts == []
    go_on.set()
    node.join(PATIENCE_S)
    assert obliging.starts == ["cache-latents wan"] and until(lambda: run.state == "done")


def test_what_is_trained_never_goes_into_the_demos_folder(comfy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ComfyUI whose models all lie elsewhere, after the demo: the folder of that name is the demo's alone."""
    paths, folder_paths = part("nodes.paths"), importlib.import_module("folder_paths")
    own, demo, elsewhere = comfy / "models/loras", comfy / "models/musubi_demo/loras", comfy / "stable-diffusion/Lora"
    own.rmdir()
    for folder in (demo, elsewhere):
        folder.mkdir(parents=True)
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda kind: [str(own), str(demo), str(elsewhere)])
    assert paths.result_folder("lora") == elsewhere / "musubi"
