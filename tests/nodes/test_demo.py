"""The demo puts exactly what the shipped workflows name where ComfyUI finds it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from engine.contract import toml
from engine.demo.prepare import LORA, Prepared, prepare

from .conftest import PACK, part, until

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


def test_what_is_trained_never_goes_into_the_demos_folder(comfy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ComfyUI whose models all lie elsewhere, after the demo: the folder of that name is the demo's alone."""
    paths, folder_paths = part("nodes.paths"), importlib.import_module("folder_paths")
    own, demo, elsewhere = comfy / "models/loras", comfy / "models/musubi_demo/loras", comfy / "stable-diffusion/Lora"
    own.rmdir()
    for folder in (demo, elsewhere):
        folder.mkdir(parents=True)
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda kind: [str(own), str(demo), str(elsewhere)])
    assert paths.result_folder("lora") == elsewhere / "musubi"
