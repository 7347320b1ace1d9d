"""Adding a folder is enough: the toy family, which the engine has never heard of, does the whole main job.

It is found through `families.extra_path` (in this process) or MUSUBI_FAMILIES (in children), and once by lying in a
copy of the engine's own folder. Everything goes through the commands that a person types.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from engine import families
from engine.demo.prepare import Prepared, prepare
from engine.families.contract import FILES
from engine.media.video import probe, read_frames

from .test_contract import differences, owed_by

HERE = Path(__file__).resolve().parent
PACK = HERE.parents[1]
TOY = HERE / "toy"
BESIDES = {"__init__"}
COMMANDS = ("cache-latents", "cache-text", "train", "generate")


@pytest.fixture(scope="module")
def toy() -> Iterator[None]:
    """The toy family is there, for as long as this module's tests run."""
    before = list(families.__path__)
    families.extra_path(HERE)
    yield
    families.__path__[:] = before
    for name in [name for name in sys.modules if name.startswith("engine.families.toy")]:
        del sys.modules[name]
    vars(families).pop("toy", None)


@pytest.fixture(scope="module")
def cached(toy: None, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A demo folder of the toy with both caches made."""
    from engine.__main__ import main

    prepared = prepare(tmp_path_factory.mktemp("toy demo"), "toy")
    for step in prepared.steps[:2]:
        assert main([*step.command, "--job_dir", str(tmp_path_factory.mktemp("job"))]) == 0
    return prepared


def step(prepared: Prepared, verb: str) -> list[str]:
    return next(step.command for step in prepared.steps if step.verb == verb)


def train(engine, prepared: Prepared, out: Path, *more: object):
    words = ["--output_dir", out, "--logging_dir", out / "logs", "--max_train_steps", 3]
    return engine(*step(prepared, "train"), *words, *more)


def digests(folder: Path) -> dict[str, str]:
    """What is in a folder, without what Python leaves."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ------------------------------------------------------------------------------------------------- the folder


def test_the_folder_has_the_files_of_a_family_and_no_others() -> None:
    assert {path.stem for path in TOY.glob("*.py")} == {*FILES, *BESIDES}
    assert {path.name for path in TOY.iterdir() if path.suffix != ".py"} - {"__pycache__"} == {"README.md"}


def test_every_family_has_these_files_at_least(toy: None) -> None:
    for family in families.names(extra=False):
        folder = PACK / "engine" / "families" / family
        assert {*FILES, *BESIDES} <= {path.stem for path in folder.glob("*.py")}, family
        assert (folder / "README.md").is_file(), family


@pytest.mark.parametrize("file", FILES)
def test_it_owes_what_every_family_owes(toy: None, file: str) -> None:
    module = families.part("toy", file)
    assert [name for name in FILES[file].__annotations__ if not hasattr(module, name)] == []
    assert [said for name, owed in owed_by(FILES[file]) for said in differences(owed, getattr(module, name))] == []


def test_it_is_gone_when_nobody_named_its_folder() -> None:
    words = [sys.executable, "-c", "from engine import families; print(families.names())"]
    told = {name: value for name, value in os.environ.items() if name != families.ENVIRONMENT}
    done = subprocess.run(words, cwd=PACK, env=told, capture_output=True, text=True, check=True)
    assert "wan" in done.stdout and "toy" not in done.stdout


# ---------------------------------------------------------------------------------------- what follows by itself


@pytest.mark.parametrize("verb", COMMANDS)
def test_help_shows_the_shared_options_and_its_own(toy: None, engine, verb: str) -> None:
    shown = engine(verb, "toy", "--help")
    assert shown.status == 0 and f"{verb} toy" in shown.out
    own = {"cache-latents": "--toy_contrast", "generate": "--byte_table", "cache-text": "--byte_table"}
    assert own.get(verb, "--max_train_steps") in shown.out
    assert "--t5" not in shown.out


def test_the_overviews_name_it(toy: None, engine) -> None:
    assert "toy" in engine("--help").out and "train toy --help" in engine("train", "--help").out
    assert engine("doctor").err.count("toy") == 1


def test_its_script_and_its_defaults(toy: None, engine) -> None:
    words = ["toy_train_network.py", "--dit", "d", "--dataset_config", "c", "--print_config"]
    printed = engine(*words).out
    assert 'family = "toy"' in printed and 'network_module = "networks.lora_toy"' in printed
    assert "task" not in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train toys", "toy"),
        ("train toy --dti x", "--dit"),
        ("train toy --task t2v-14B --dit d --dataset_config c", "--task"),
        ("generate toy --prompt x --dit d --vae v --save_path o", "--byte_table"),
        ("cache-latents toy --vae v --dataset_config c --toy_contrast 99", "10"),
        ("train toy --dit d --dataset_config c --network_module networks.lora_wan", "networks.lora_toy"),
        ("wan_train_network.py --toy_contrast 2", "toy_contrast"),
    ],
)
def test_mistakes_are_answered_in_one_line(toy: None, engine, words: str, said: str) -> None:
    result = engine(*words.split())
    assert result.status == 2 and len(result.error_lines) == 1 and said in result.err, result.err


def test_pages_of_a_folder_that_the_person_names_are_about_it_too(toy: None, engine, tmp_path: Path) -> None:
    assert engine("docs", "--docs_dir", tmp_path).status == 0
    page = (tmp_path / "train-toy.md").read_text(encoding="utf-8")
    assert (
        "--toy_contrast" in page
        and "networks.lora_toy" in page
        and "](train-toy.md)" in (tmp_path / "README.md").read_text(encoding="utf-8")
    )
    assert engine("docs", "--docs_dir", tmp_path, "--check").status == 0
    assert not list((PACK / "docs").rglob("*toy*"))


def test_the_dataset_is_looked_at_as_it_would(cached: Prepared, engine) -> None:
    config = cached.folder / "dataset.toml"
    assert engine("dataset", "check", "--dataset_config", config, "--family", "toy").status == 0


# ------------------------------------------------------------------------------------------------ the main job


def test_caches_bear_its_name(cached: Prepared) -> None:
    cache = cached.folder / "cache"
    latents, texts = sorted(cache.glob("*_toy.safetensors")), sorted(cache.glob("*_toy_te.safetensors"))
    assert len(latents) == len(texts) == 6 and not list(cache.glob("*wan*"))
    with safe_open(latents[0], "pt") as file:
        (key,) = file.keys()
        height, width = file.get_tensor(key).shape[-2:]
        assert file.metadata()["architecture"] == "toy_blocks"
        assert key == f"latents_17x{height}x{width}_float16"
        assert (int(file.metadata()["width"]), int(file.metadata()["height"])) == (16 * width, 16 * height)
    with safe_open(texts[0], "pt") as file:
        (key,) = file.keys()
        assert key == "varlen_bytes_float32"
        assert len(file.get_tensor(key)) == len(file.metadata()["caption1"].encode())


def test_another_contrast_makes_the_caches_stale(cached: Prepared, engine, tmp_path: Path) -> None:
    words = step(cached, "cache-latents")
    assert "6 were there" in engine(*words).err
    config = tmp_path / "dataset.toml"
    text = (cached.folder / "dataset.toml").read_text(encoding="utf-8")
    shutil.copytree(cached.folder / "cache", tmp_path / "cache")
    config.write_text(text.replace((cached.folder / "cache").as_posix(), (tmp_path / "cache").as_posix()))
    again = engine(*words, "--dataset_config", config, "--toy_contrast", 2)
    assert again.status == 0 and "6 clips cached, 0 were there" in again.err


def test_a_lora_is_trained_resumed_and_says_where_it_comes_from(cached: Prepared, engine, tmp_path: Path) -> None:
    result = train(engine, cached, tmp_path)
    assert result.status == 0, result.err
    weights = load_file(tmp_path / "demo-lora.safetensors")
    assert sorted(name for name in weights if name.endswith("lora_up.weight")) == [
        f"lora_unet_blocks_{number}_mix.lora_up.weight" for number in (0, 1)
    ]
    assert all(weights[name].any() for name in weights)
    with safe_open(tmp_path / "demo-lora.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_module"] == "networks.lora_toy" and metadata["ss_base_model_version"] == "toy"
    assert metadata["modelspec.architecture"] == "toy-blocks/lora"
    more = train(engine, cached, tmp_path, "--max_train_steps", 5, "--resume", tmp_path / "demo-lora-state")
    assert more.status == 0 and "Resuming after step 3" in more.err


@pytest.mark.parametrize(
    "flags",
    [
        "--gradient_checkpointing",
        "--fp8_base --fp8_scaled",
        "--blocks_to_swap 1 --gradient_checkpointing",
        "--blocks_to_swap 1 --gradient_checkpointing --block_swap_from_disk",
    ],
)
def test_what_acts_on_blocks_acts_on_its_blocks(cached: Prepared, engine, tmp_path: Path, flags: str) -> None:
    assert train(engine, cached, tmp_path, *flags.split()).status == 0
    assert load_file(tmp_path / "demo-lora.safetensors")["lora_unet_blocks_1_mix.lora_up.weight"].any()


@pytest.mark.parametrize(
    ("module", "arguments", "ending"),
    [
        ("networks.loha", "verbose=True", "hada_w2_a"),
        ("networks.lokr", "factor=8", "lokr_w2_b"),
        ("lycoris.kohya", "algo=lokr decompose_both=True dora_wd=True", "dora_scale"),
        ("networks.lora_toy", "dora_wd=True network_reg_lrs=.*1.*=1e-3", "lora_up.weight"),
    ],
)
def test_other_adapters_are_trained_merged_and_trained_further(
    cached: Prepared, engine, tmp_path: Path, module: str, arguments: str, ending: str
) -> None:
    given = ["--network_module", module, "--network_dim", 1, "--network_args", *arguments.split()]
    first = train(engine, cached, tmp_path, *given, "--gradient_checkpointing", "--learning_rate", 0.02)
    assert first.status == 0, first.err
    lora = tmp_path / "demo-lora.safetensors"
    assert load_file(lora)[f"lora_unet_blocks_1_mix.{ending}"].any()
    words = [*step(cached, "generate"), "--infer_steps", 1, "--video_length", 5, "--lora_weight", lora, "--lycoris"]
    assert engine(*words, "--save_path", tmp_path / "videos").status == 0
    config = tmp_path / "again.toml"
    lines = (cached.folder / "3_train.toml").read_text(encoding="utf-8").splitlines()
    config.write_text("\n".join(line for line in lines if not line.startswith("network_dim")), encoding="utf-8")
    more = engine("train", "toy", "--config_file", config, "--output_dir", tmp_path / "more", "--max_train_steps", 2,
                  "--network_weights", lora, "--dim_from_weights", "--lora_format", "other", "--logging_dir",
                  tmp_path / "logs")  # fmt: skip
    assert more.status == 0, more.err
    written = load_file(tmp_path / "more" / "demo-lora.safetensors")
    assert all(name.startswith("diffusion_model.blocks.") for name in written)


def test_a_video_comes_about(cached: Prepared, engine, tmp_path: Path) -> None:
    assert train(engine, cached, tmp_path, "--learning_rate", 0.05).status == 0
    lora, videos = tmp_path / "demo-lora.safetensors", tmp_path / "videos"
    words = [*step(cached, "generate"), "--infer_steps", 2, "--video_length", 5, "--guidance_scale", 2]
    for number, strength in enumerate((1.0, 0.0), 1):
        result = engine(*words, "--lora_weight", lora, "--lora_multiplier", strength, "--save_path", videos)
        assert result.status == 0, result.err
        assert len(list(videos.glob("*.mp4"))) == len(list(videos.glob("*_latent.safetensors"))) == number
    info = probe(next(videos.glob("*.mp4")))
    assert (info.width, info.height, info.frames, round(info.fps)) == (96, 96, 5, 8)
    with_lora, without = (load_file(path)["latent"] for path in sorted(videos.glob("*_latent.safetensors")))
    assert with_lora.shape == (768, 5, 6, 6) and not torch.allclose(with_lora, without)


def test_what_was_cached_decodes_to_the_clip(cached: Prepared, engine, tmp_path: Path) -> None:
    from engine.media.latents import save_latent

    cache = next((cached.folder / "cache").glob("red_circle*_toy.safetensors"))
    (latents,) = load_file(cache).values()
    latent = save_latent(tmp_path / "a_latent.safetensors", latents.float() * 0.5)  # LATENT_SCALE
    words = [*step(cached, "generate"), "--lora_weight", "--latent_path", latent, "--output_type", "images"]
    result = engine(*words, "--save_path", tmp_path / "out")
    assert result.status == 0, result.err
    from engine.media.images import read_image

    first = read_image(sorted((tmp_path / "out").rglob("*_000.png"))[0])
    clip = next(iter(read_frames(next(cached.clips.glob("red_circle*.mp4")))))
    difference = np.abs(first.mean((0, 1)) - clip.mean((0, 1)))
    assert difference.max() < 6, difference


def test_a_wrong_file_is_named_in_its_own_words(cached: Prepared, engine, tmp_path: Path) -> None:
    models = cached.folder / "models"
    result = train(engine, cached, tmp_path, "--dit", models / "toy_vae.safetensors")
    assert result.status == 2 and "toy VAE" in result.err and "--vae" in result.err


# -------------------------------------------------------------------------------------- in processes of its own


@pytest.mark.slow
def test_the_demo_runs_from_end_to_end(toy: None, engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(families.ENVIRONMENT, str(HERE))  # for the steps, which are processes of their own
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("engine.demo.kits.TRAIN_STEPS", 20)
    done = engine("demo", "--family", "toy", "--out", tmp_path)
    assert done.status == 0 and "The demo is complete" in done.err, done.err
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert {"output/demo-lora.safetensors", "output/demo-lora_loss.png", "contact_sheet.png"} <= made


def test_laid_into_the_engine_it_needs_no_other_change(tmp_path: Path) -> None:
    """A copy of the pack with the toy among the families: pages and commands know it, no other file is touched."""
    for folder in ("engine", "docs"):
        shutil.copytree(PACK / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(TOY, tmp_path / "engine" / "families" / "toy", ignore=shutil.ignore_patterns("__pycache__"))
    told = {n: v for n, v in os.environ.items() if n not in (families.ENVIRONMENT, "PYTHONPATH")}
    told["PYTHONDONTWRITEBYTECODE"] = "1"

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "engine", *words]
        return subprocess.run(line, cwd=tmp_path, env=told, capture_output=True, text=True, check=False)

    assert run("docs").returncode == 0
    before = digests(tmp_path)
    assert "train-toy.md" in run("docs", "--check").stderr or run("docs", "--check").returncode == 0
    assert {name for name in before if "toy" in name and name.startswith("docs")} == {
        f"docs/options/{verb}-toy.md" for verb in COMMANDS
    }
    printed = run("train", "toy", "--dit", "d", "--dataset_config", "c", "--print_config")
    assert printed.returncode == 0 and 'family = "toy"' in printed.stdout
    assert digests(tmp_path) == before
