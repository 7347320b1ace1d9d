"""What the demo starts from."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.contract import toml
from engine.demo.kits import POCKET
from engine.demo.prepare import Prepared, prepare
from engine.families import names, offers, part

POCKETS = [family for family in names(extra=False) if offers(family, "pocket")]


def test_a_folder_that_is_ready_is_left_alone(prepared: Prepared) -> None:
    models = prepared.folder / "models"
    before = {path: path.stat().st_mtime_ns for path in models.iterdir()}
    assert prepare(prepared.folder, trained=False).steps == prepared.steps
    assert {path: path.stat().st_mtime_ns for path in models.iterdir()} == before


def test_another_family_in_the_same_folder_gets_its_models(tmp_path: Path) -> None:
    """`demo` and then `demo --family hunyuan-video`, which both use the folder of the demo."""
    for family in ("wan", "hunyuan_video"):
        train = next(step for step in prepare(tmp_path, family).steps if step.verb == "train")
        assert train.family == family and Path(toml.load(train.file)["dit"]).is_file()


@pytest.mark.parametrize("family", POCKETS)
def test_a_pocket_model_and_its_clips_are_copies_of_what_we_ship(tmp_path: Path, family: str) -> None:
    pocket = part(family, "pocket")
    made = prepare(tmp_path, family)
    for name in (*pocket.FILES.values(), *getattr(pocket, "BESIDE", ())):
        assert (tmp_path / "models" / name).read_bytes() == (POCKET / name).read_bytes()
    clips = sorted(path.stem for path in made.clips.glob("*.mp4"))
    assert len(clips) == 8 and clips == sorted(path.stem for path in made.clips.glob("*.txt"))
    with_lora, without = (toml.load(made.folder / f"{name}.toml") for name in ("4_generate", "5_without"))
    differ = {name for name in with_lora | without if with_lora.get(name) != without.get(name)}
    assert differ == {"lora_weight", "lora_multiplier", "save_path"}, "only the LoRA makes the difference"


def test_each_prompt_of_a_model_that_begins_with_a_picture_names_its_own(tmp_path: Path) -> None:
    made = prepare(tmp_path, "framepack")
    lines = (tmp_path / "prompts.txt").read_text(encoding="utf-8").splitlines()
    prompts, pictures = zip(*(line.split(" --i ") for line in lines), strict=True)
    assert prompts == made.kit.prompts and len(set(pictures)) == len(pictures)
    for picture, shipped in zip(pictures, part("framepack", "pocket").FIRST_FRAMES, strict=True):
        assert Path(picture).read_bytes() == (POCKET / shipped).read_bytes()


@pytest.mark.parametrize("family", POCKETS)
def test_random_models_in_the_folder_of_trained_ones_are_known_for_others(tmp_path: Path, family: str) -> None:
    """As a demo of before the pocket models left them: what stands there is complete, but not what is needed."""
    for trained in (False, True):
        made = prepare(tmp_path, family, trained=trained)
        values = [str(value) for step in made.steps for value in toml.load(step.file).values()]
        found = [Path(value) for value in values if value.startswith(str(tmp_path / "models"))]
        assert found and all(path.is_file() for path in found)


@pytest.mark.parametrize("family", POCKETS)
def test_the_prompts_ask_for_no_clip_that_was_trained_on(family: str) -> None:
    captions, prompts = (
        [path.read_text("utf-8").strip() for path in POCKET.rglob("*.txt")],
        part(family, "pocket").PROMPTS,
    )
    assert len(captions) == 8 and not set(captions) & set(prompts)
    assert all("hexagon" in text for text in (*captions, *prompts))
