"""Every variant of every family through all four tasks, from videos and from images, in batches of one and of two.

Small random models on the CPU. What is shown is that nothing in between refuses or drops what a variant needs: caches
come about, five steps change every adapter, and as many videos or pictures as were asked for are written with that
LoRA. What is in them is the business of each family's own tests. The rows stand in `tests/families/<family>/matrix.py`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from engine.families import names
from engine.families.wan import tiny
from engine.media.images import image_size
from engine.media.video import probe
from tests.clips import draw_image, draw_item, draw_video
from tests.families.case import CONTROL, END, FRAMES, SIZE, START, Case

ROWS = {family: importlib.import_module(f"tests.families.{family}.matrix") for family in names(extra=False)}
CASES = [case for rows in ROWS.values() for case in rows.CASES]
STEPS = 5


@dataclass(frozen=True)
class Material:
    """What is drawn and written once for all cases."""

    folder: Path

    def models(self, case: Case, verb: str) -> dict[str, Any]:
        return ROWS[case.family].models(self.folder / case.family, case, verb)

    def given(self, options: dict[str, Any]) -> dict[str, Any]:
        """Names of drawn files made into paths."""

        def path(value: Any) -> Any:
            if isinstance(value, list):
                return [path(one) for one in value]
            return self.folder / value if value in (START, END, CONTROL) else value

        return {name: path(value) for name, value in options.items()}

    def dataset(self, case: Case, folder: Path, *, batch_size: int) -> Path:
        """A dataset file over two items; the caches lie beside it."""
        kind = "image" if case.images else "video"
        lines = [
            f"[general]\nresolution = {list(SIZE)}\ncaption_extension = '.txt'\nbatch_size = {batch_size}",
            f"[[datasets]]\n{kind}_directory = '{(self.folder / kind).as_posix()}'",
            f"cache_directory = '{(folder / 'cache').as_posix()}'",
            "" if case.images else f"target_frames = [{FRAMES}]",
            case.keys,
        ]
        if case.controls:
            lines.append(f"control_directory = '{(self.folder / f'{kind} controls {case.controls}').as_posix()}'")
        path = folder / f"dataset {batch_size}.toml"
        path.write_text("\n".join(lines))
        return path


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    folder = tmp_path_factory.mktemp("matrix material")
    for family, rows in ROWS.items():
        rows.write_models(folder / family)
    for number in range(2):
        draw_item(folder / "video", f"{number}.mp4", size=SIZE, frames=FRAMES, first_number=40 * number)
        draw_video(folder / "video controls 1" / f"{number}.mp4", size=SIZE, frames=FRAMES, first_number=9000)
        draw_image(folder / "image" / f"{number}.png", number=number, size=SIZE)
        (folder / "image" / f"{number}.txt").write_text("a bar")
        for count in (1, 2):
            for control in range(count):
                draw_image(folder / f"image controls {count}" / f"{number}_{control}.png", number=700 + control)
    draw_image(folder / START, number=5, size=(80, 60))
    draw_image(folder / END, number=60000, size=(80, 60))
    draw_video(folder / CONTROL, size=(80, 60), frames=FRAMES, first_number=77)
    return Material(folder)


@pytest.fixture(scope="module")
def cached(material, tmp_path_factory):
    """A case's folder with both its caches, made when it is first asked for; each batch size reads the same ones."""
    from engine.__main__ import main

    made: dict[str, Path] = {}

    def folder_of(case: Case) -> Path:
        if case.name not in made:
            folder = tmp_path_factory.mktemp("case")
            data = {"dataset_config": material.dataset(case, folder, batch_size=2), "device": "cpu", "job_dir": folder}
            assert main(words("cache-latents", case, material.models(case, "cache-latents") | case.cache | data)) == 0
            assert main(words("cache-text", case, material.models(case, "cache-text") | data)) == 0
            made[case.name] = folder
        return made[case.name]

    return folder_of


def words(verb: str, case: Case, options: dict[str, Any]) -> list[str]:
    """The command as a person types it; True is a flag by itself, False and None are left out."""
    found = [verb, case.family]
    for name, value in options.items():
        if value is not None and value is not False:
            values = value if isinstance(value, list) else [] if value is True else [value]
            found += [f"--{name}", *map(str, values)]
    return found


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_caches_training_and_generation(case, batch, cached, material, engine, tmp_path):
    folder = cached(case)
    out = tmp_path / "out"
    training = {
        "dataset_config": material.dataset(case, folder, batch_size=batch), "max_train_steps": STEPS,
        "mixed_precision": "no", "network_dim": 4, "learning_rate": 1e-2, "seed": 1, "device": "cpu",
        "output_dir": out, "output_name": "lora",
    }  # fmt: skip
    trained = engine(*words("train", case, material.models(case, "train") | case.train | training))
    assert trained.status == 0, trained.err
    files = sorted(out.glob("lora*.safetensors"))
    assert len(files) == case.experts
    for file in files:
        weights = load_file(file)
        untouched = [name for name in weights if name.endswith("lora_up.weight") and not weights[name].any()]
        assert weights and not untouched, untouched[:3]

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a bar --d {number}\n" for number in range(batch)))
    generation = {
        "from_file": prompts, "video_size": [SIZE[1], SIZE[0]], "infer_steps": 2, "device": "cpu",
        "lora_weight": out / "lora.safetensors", "save_path": tmp_path / "made",
    }  # fmt: skip
    if case.experts == 2:
        generation["lora_weight_high_noise"] = files[1]
    options = material.models(case, "generate") | material.given(case.generate) | generation
    made = engine(*words("generate", case, options))
    assert made.status == 0, made.err
    results = sorted((tmp_path / "made").glob("*.png" if case.picture else "*.mp4"))
    assert len(results) == batch
    for result in results:
        if case.picture:
            assert image_size(result) == SIZE
        else:
            info = probe(result)
            assert (info.width, info.height, info.frames) == (*SIZE, FRAMES)


def test_no_row_is_there_twice_and_no_small_model_is_left_out():
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.variant for case in ROWS["wan"].CASES} == set(tiny.CONFIGS)
