"""FramePack's whole way on small models, through the commands that a person types: caches, training, a video."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from engine.__main__ import main
from engine.data.batches import BatchSampler, load_items
from engine.data.config import load_config
from engine.families.framepack import tiny
from engine.media.video import probe, read_frames

from ...clips import draw_image, draw_item

WINDOW = 2  # latent frames in a section: a clip of 17 frames has two
SHORT = ("--latent_window_size", WINDOW, "--infer_steps", 2, "--seed", 7, "--video_size", 48, 64)
LATENTS = {
    "latents", "latents_clean", "latents_clean_2x", "latents_clean_4x", "latent_indices", "clean_latent_indices",
    "clean_latent_2x_indices", "clean_latent_4x_indices", "image_embeddings",
}  # fmt: skip


def words(options: dict[str, object]) -> list[str]:
    return [str(word) for name, value in options.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, list[str]]:
    """The flags that name the small models, for each verb."""
    folder = tmp_path_factory.mktemp("models")
    tiny.write_tiny_models(folder)
    return {verb: words(options) for verb, options in tiny.tiny_model_options(folder).items()}


@pytest.fixture(scope="module", params=["plain", "f1"])
def cached(request, tmp_path_factory, models) -> Path:
    """A folder with a dataset of one clip and both its caches; its name says whether they are F1's."""
    folder = tmp_path_factory.mktemp(f"{request.param} ")
    draw_item(folder / "clips", "bar.mp4", size=(64, 48), frames=20, fps=30)
    (folder / "dataset.toml").write_text(
        "[general]\nresolution = [64, 48]\ncaption_extension = '.txt'\nenable_bucket = true\n[[datasets]]\n"
        f"video_directory = '{(folder / 'clips').as_posix()}'\ncache_directory = '{(folder / 'cache').as_posix()}'\n"
        f"target_frames = [20]\nfp_latent_window_size = {WINDOW}\n"
    )
    for verb, more in (("cache-latents", f1(folder)), ("cache-text", ())):
        command = [verb, "framepack", *models[verb], "--dataset_config", str(folder / "dataset.toml"), *more]
        assert main([*command, "--device", "cpu", "--job_dir", str(folder / verb)]) == 0
    return folder


def f1(folder: Path) -> tuple[str, ...]:
    return ("--f1",) if folder.name.startswith("f1") else ()


def plain_names(path: Path) -> set[str]:
    from engine.data.cache import plain_name

    with safe_open(path, "pt") as file:
        return {plain_name(name) for name in file.keys()}


def test_caches_have_the_names_and_keys_of_the_reference(cached) -> None:
    first, second = sorted((cached / "cache").glob("*_fp.safetensors"))
    assert first.name == "bar_00000-017-0000_0064x0048_fp.safetensors" and "-0001_" in second.name
    assert plain_names(first) == LATENTS
    with safe_open(first, "pt") as file:
        assert "latents_clean_4x_2x6x8_float16" in file.keys()  # the size is the target's
        assert file.metadata()["architecture"] == "framepack"
    (text,) = (cached / "cache").glob("*_fp_te.safetensors")
    assert load_file(text)["llama_attention_mask"].dtype == torch.bool
    assert set(load_file(text)) == {"llama_vec_float16", "llama_attention_mask", "clip_l_pooler_float16"}


def test_dataset_check_counts_what_is_cached_and_trained_on(models, engine, tmp_path) -> None:
    """Sections, not clips: those of clips of any length are of one size, and go into batches together."""
    for name, frames in (("short", 5), ("middle", 9), ("long", 29)):
        draw_item(tmp_path / "clips", f"{name}.mp4", size=(64, 48), frames=frames, fps=30)
    config = tmp_path / "dataset.toml"
    config.write_text(
        "[general]\nresolution = [64, 48]\ncaption_extension = '.txt'\nbatch_size = 3\n[[datasets]]\n"
        f"video_directory = 'clips'\nframe_extraction = 'full'\nfp_latent_window_size = {WINDOW}\n"
    )
    checked = engine("dataset", "check", "--family", "framepack", "--dataset_config", config)
    said = " ".join(checked.err.split())
    assert checked.status == 2 and "short.mp4, 5 frames from frame 0: This clip has 5 frames" in said
    assert said.count("needs 9.") == 1
    (tmp_path / "clips" / "short.mp4").unlink()
    for verb in ("cache-latents", "cache-text"):
        made = engine(verb, "framepack", *models[verb], "--dataset_config", config, "--device", "cpu")
        assert made.status == 0, made.err
    found = load_items(load_config(config), architecture="fp", say=lambda event: None)
    batches = len(BatchSampler(found, batch_sizes=[3], seed=0))
    checked = engine("dataset", "check", "--family", "framepack", "--dataset_config", config)
    wanted = f"2 items, 2 clips cut into {len(found)} sections, 1 bucket, {batches} batches an epoch"
    assert checked.status == 0 and wanted in " ".join(checked.err.split()), checked.err
    assert (len(found), batches) == (4, 2)


def test_a_clip_without_a_whole_section_costs_only_itself(models, engine, tmp_path) -> None:
    """In musubi-tuner one clip of fewer than 37 frames ends the whole run."""
    draw_item(tmp_path / "clips", "bar.mp4", size=(64, 48), frames=9, fps=30)
    draw_item(tmp_path / "clips", "short.mp4", size=(64, 48), frames=5, fps=30)
    (tmp_path / "dataset.toml").write_text(
        "[general]\nresolution = [64, 48]\ncaption_extension = '.txt'\n[[datasets]]\n"
        f"video_directory = '{(tmp_path / 'clips').as_posix()}'\n"
        f"cache_directory = '{(tmp_path / 'cache').as_posix()}'\n"
        f"frame_extraction = 'full'\nfp_latent_window_size = {WINDOW}\n"
    )
    made = engine(
        "cache-latents", "framepack", *models["cache-latents"], "--dataset_config", tmp_path / "dataset.toml",
        "--device", "cpu",
    )  # fmt: skip
    assert made.status == 0 and "short.mp4" in made.err and "1 left out" in made.err, made.err
    assert [path.name[:3] for path in (tmp_path / "cache").glob("*_fp.safetensors")] == ["bar"]


def test_training_and_generation_with_its_lora(cached, models, engine, tmp_path) -> None:
    trained = engine(
        "train", "framepack", *models["train"], "--dataset_config", cached / "dataset.toml", "--max_train_steps", 2,
        "--network_dim", 4, "--guidance_scale", 10, "--mixed_precision", "no", "--output_dir", tmp_path / "out",
        "--output_name", "bar", "--device", "cpu", *f1(cached),
    )  # fmt: skip
    assert trained.status == 0, trained.err
    lora = tmp_path / "out" / "bar.safetensors"
    assert any(name.startswith("lora_unet_single_transformer_blocks_1_attn_to_q.") for name in load_file(lora))
    with safe_open(lora, "pt") as file:
        assert file.metadata()["ss_network_module"] == "networks.lora_framepack"
    start = draw_image(tmp_path / "start.png", size=(80, 60))
    exact = ("--crf", 0)  # what else x264 writes of small pictures is not always the same
    made = engine(
        "generate", "framepack", *models["generate"], *SHORT, "--prompt", "0:a bar;;;-1:a bar that waits",
        "--image_path", start, "--video_sections", 2, "--lora_weight", lora, "--output_type", "both", "--save_path",
        tmp_path / "video", "--device", "cpu", *exact, *f1(cached),
    )  # fmt: skip
    assert made.status == 0, made.err
    (video,) = (tmp_path / "video").glob("*.mp4")
    info = probe(video)
    assert (info.width, info.height, info.frames, round(info.fps)) == (64, 48, 17, 30)
    (latent,) = (tmp_path / "video").glob("*_latent.safetensors")
    with safe_open(latent, "pt") as file:
        said = file.metadata()
    assert (said["video_sections"], said["embedded_cfg_scale"], said["video_length"]) == ("2", "10.0", "17"), said
    again = engine(
        "generate", "framepack", *models["generate"], "--latent_window_size", WINDOW, "--latent_path", latent,
        "--save_path", tmp_path / "again", "--device", "cpu", *exact,
    )  # fmt: skip
    assert again.status == 0, again.err
    (second,) = (tmp_path / "again").glob("*.mp4")
    assert all((a == b).all() for a, b in zip(read_frames(video), read_frames(second), strict=True))


@pytest.mark.parametrize("made_by", ["us", "musubi-tuner"])
def test_caches_of_the_other_release_are_told_before_training(cached, models, engine, tmp_path, made_by) -> None:
    """Its history lies on the other side of the section: trained on, it would teach nothing that a video needs."""
    shutil.copytree(cached / "cache", tmp_path / "cache")
    if made_by == "musubi-tuner":
        for sidecar in (tmp_path / "cache").glob("*.json"):
            sidecar.unlink()
    dataset = (cached / "dataset.toml").read_text()
    dataset = dataset.replace((cached / "cache").as_posix(), (tmp_path / "cache").as_posix())
    (tmp_path / "dataset.toml").write_text(dataset)
    of_f1 = bool(f1(cached))
    command = ["train", "framepack", *models["train"], "--dataset_config", tmp_path / "dataset.toml"]
    command += ["--max_train_steps", 1, "--mixed_precision", "no", "--output_dir", tmp_path / "out", "--device", "cpu"]
    refused = engine(*command, "--output_name", "bar", *([] if of_f1 else ["--f1"]))
    assert refused.status == 2, refused.err
    assert "bar_00000-017-0000_0064x0048_fp.safetensors cannot be trained on" in refused.err
    assert ("it was made with --f1" if of_f1 else "it was made without --f1") in " ".join(refused.err.split())


def test_two_batched_prompts_with_their_own_lengths_and_guidance(models, engine, tmp_path) -> None:
    (tmp_path / "prompts.txt").write_text("a bar --vs 1 --d 1\na bar --f 0.5 --d 2 --g 2 --n blurry\n")
    made = engine(
        "generate", "framepack", *models["generate"], *SHORT, "--from_file", tmp_path / "prompts.txt", "--save_path",
        tmp_path / "video", "--output_type", "latent", "--device", "cpu",
    )  # fmt: skip
    assert made.status == 0, made.err
    lengths = sorted(load_file(path)["latent"].shape[1] for path in (tmp_path / "video").glob("*.safetensors"))
    assert lengths == [3, 5]  # half a second at 30 frames a second is two sections of 8 frames


def test_finished_text_caches_are_not_made_again(cached, models, engine) -> None:
    command = ["cache-text", "framepack", *models["cache-text"], "--dataset_config", cached / "dataset.toml"]
    again = engine(*command, "--device", "cpu", "--events")
    assert again.status == 0
    assert any("1 were there" in json.loads(line).get("message", "") for line in again.out.splitlines())
