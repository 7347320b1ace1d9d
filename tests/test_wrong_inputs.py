"""Wrong inputs, one by one: each is answered by one clear line and status 2, never by a traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import Result


def assert_one_clear_line(result: Result, *words: str) -> None:
    assert result.status == 2, result
    assert len(result.error_lines) == 1, result.err
    assert "Traceback" not in result.err
    said = result.err.lower()
    for word in words:
        assert word.lower() in said, f"{word!r} is not in: {result.err}"


def dataset(folder: Path, body: str, general: str = "") -> Path:
    path = folder / "dataset.toml"
    path.write_text(f'[general]\nresolution = [64, 64]\ncaption_extension = ".txt"\n{general}\n{body}')
    return path


def video_dataset(folder: Path, clips: Path, extra: str = "") -> Path:
    body = f'[[datasets]]\nvideo_directory = "{clips}"\ncache_directory = "{folder / "cache"}"\n'
    return dataset(folder, body + f"target_frames = [5]\n{extra}")


def model(prepared, name: str) -> Path:
    """A model file of the prepared demo by the option that takes it."""
    for step in prepared.steps:
        for line in step.file.read_text().splitlines():
            if line.startswith(f"{name} = "):
                return Path(line.split(" = ", 1)[1].strip("\"'"))
    raise AssertionError(name)


@pytest.fixture
def train(engine, prepared, folder):
    """A training command with right inputs, to spoil one of them."""

    def run(**changed: object) -> Result:
        given = {
            "task": "t2v-1.3B", "dit": model(prepared, "dit"), "dataset_config": prepared.folder / "dataset.toml",
            "output_dir": folder / "out", "output_name": "x", "max_train_steps": 1, "mixed_precision": "no",
        } | changed  # fmt: skip
        return engine("train", "wan", *(word for name, value in given.items() for word in (f"--{name}", value)))

    return run


@pytest.fixture
def cache(engine, prepared):
    def run(config: Path, *more: object) -> Result:
        return engine("cache-latents", "wan", "--dataset_config", config, "--vae", model(prepared, "vae"), *more)

    return run


def test_missing_model_file(train, folder) -> None:
    assert_one_clear_line(train(dit=folder / "nowhere.safetensors"), "--dit", "nowhere.safetensors")


def test_missing_dataset_file(cache, folder) -> None:
    assert_one_clear_line(cache(folder / "nothing.toml"), "nothing.toml")


def test_corrupt_safetensors(train, prepared, folder) -> None:
    whole = model(prepared, "dit").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    assert_one_clear_line(train(dit=folder / "cut.safetensors"), "cut.safetensors", "bytes")
    (folder / "garbage.safetensors").write_bytes(b"\xff" * 4096)
    assert_one_clear_line(train(dit=folder / "garbage.safetensors"), "garbage.safetensors")


def test_a_text_encoder_given_as_dit(train, prepared) -> None:
    assert_one_clear_line(train(dit=model(prepared, "t5")), "umt5", "--t5")


def test_task_and_checkpoint_do_not_match(train, prepared, folder) -> None:
    weights = load_file(model(prepared, "dit"))
    patch = weights["patch_embedding.weight"]
    weights["patch_embedding.weight"] = torch.cat([patch, patch, patch[:, :4]], dim=1).contiguous()
    save_file(weights, folder / "i2v.safetensors")
    assert_one_clear_line(train(dit=folder / "i2v.safetensors"), "36 input channels", "--task")


def test_unknown_toml_key_in_a_job_file(engine, folder) -> None:
    (folder / "job.toml").write_text("network_dims = 8\n")
    result = engine("train", "wan", "--config_file", folder / "job.toml")
    assert_one_clear_line(result, "network_dims", "network_dim", "job.toml")


def test_unknown_key_in_a_dataset_file(cache, prepared, folder) -> None:
    config = video_dataset(folder, prepared.clips, "targets_frames = [5]\n")
    assert_one_clear_line(cache(config), "targets_frames", "target_frames", "dataset.toml")


def test_broken_toml(cache, folder) -> None:
    (folder / "broken.toml").write_text("[general\nresolution = 3")
    assert_one_clear_line(cache(folder / "broken.toml"), "broken.toml", "line 1")


def test_misspelt_flag(engine) -> None:
    assert_one_clear_line(engine("train", "wan", "--learning_rte", "1e-4"), "learning_rte", "--learning_rate")


def test_wrong_frame_count(engine) -> None:
    result = engine("generate", "wan", "--task", "t2v-1.3B", "--prompt", "x", "--video_length", "80")
    assert_one_clear_line(result, "80", "77", "81")


def test_resolution_not_a_multiple(engine) -> None:
    result = engine("generate", "wan", "--task", "t2v-1.3B", "--prompt", "x", "--video_size", "100", "64")
    assert_one_clear_line(result, "100", "96", "112")


def test_empty_dataset(cache, folder) -> None:
    (folder / "clips").mkdir()
    assert_one_clear_line(cache(video_dataset(folder, folder / "clips")), "clips", "mp4")


def test_missing_dataset_folder(cache, folder) -> None:
    assert_one_clear_line(cache(video_dataset(folder, folder / "gone")), "gone")


def test_captionless_image(cache, folder) -> None:
    from PIL import Image

    (folder / "images").mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "images" / "cat.png")
    body = f'[[datasets]]\nimage_directory = "{folder / "images"}"\ncache_directory = "{folder / "cache"}"\n'
    assert_one_clear_line(cache(dataset(folder, body)), "cat", ".txt")


def test_a_text_file_named_mp4(cache, folder) -> None:
    (folder / "clips").mkdir()
    (folder / "clips" / "fake.mp4").write_text("this is no video")
    (folder / "clips" / "fake.txt").write_text("a caption")
    result = cache(video_dataset(folder, folder / "clips"))
    assert_one_clear_line(result, "fake.mp4")


def test_one_broken_clip_among_good_ones_is_left_out_and_strict_makes_it_fatal(cache, prepared, folder) -> None:
    shutil.copytree(prepared.clips, folder / "clips")
    (folder / "clips" / "fake.mp4").write_text("this is no video")
    (folder / "clips" / "fake.txt").write_text("a caption")
    config = video_dataset(folder, folder / "clips")
    strict = cache(config, "--strict")
    assert_one_clear_line(strict, "fake.mp4")
    lenient = cache(config)
    assert lenient.status == 0, lenient.err
    assert "fake.mp4" in lenient.err
    assert len(list((folder / "cache").glob("*_wan.safetensors"))) == len(list(prepared.clips.glob("*.mp4")))


def test_unreadable_directory(cache, folder, monkeypatch) -> None:
    (folder / "clips").mkdir()
    config = video_dataset(folder, folder / "clips")
    import os

    closed = str(folder / "clips")
    open_folder = {name: getattr(os, name) for name in ("scandir", "listdir")}

    def refusing(name):
        def look(path=".", *rest):
            if str(path) == closed:
                raise PermissionError(13, "Permission denied", closed)
            return open_folder[name](path, *rest)

        return look

    for name in open_folder:  # root may read everything, so the refusal is played
        monkeypatch.setattr(os, name, refusing(name))
    assert_one_clear_line(cache(config), "clips")


def test_out_of_range_value(train) -> None:
    assert_one_clear_line(train(network_dim=0), "network_dim", "1")
    assert_one_clear_line(train(min_timestep=1500), "min_timestep", "999")


def test_wrong_type_in_a_job_file(engine, folder) -> None:
    (folder / "job.toml").write_text('network_dim = "big"\n')
    assert_one_clear_line(engine("train", "wan", "--config_file", folder / "job.toml"), "network_dim", "big")


def test_training_before_caching(train, prepared, folder) -> None:
    assert_one_clear_line(train(dataset_config=video_dataset(folder, prepared.clips)), "cache-latents")


def test_a_lora_of_another_model(engine, prepared, folder) -> None:
    foreign = {
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.zeros(4, 8),
        "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": torch.zeros(24, 4),
    }
    save_file(foreign, folder / "hv.safetensors", metadata={"ss": json.dumps({})})
    generate = next(step for step in prepared.steps if step.verb == "generate")
    result = engine(
        "generate", "wan", "--config_file", generate.file, "--lora_weight", folder / "hv.safetensors",
        "--save_path", folder / "video",
    )  # fmt: skip
    assert_one_clear_line(result, "hv.safetensors")
