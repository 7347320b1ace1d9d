"""Every Wan variant through the commands that a person types: caches, five training steps, two denoising steps.

Small random models: what is shown is that each variant's pictures reach its DiT in training and in generation.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.media.images import image_size
from engine.media.video import probe

FRAMES = 9


def cached(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(sorted(path for path in folder.glob("*_wan.safetensors"))[0])


def made(folder: Path) -> tuple[int, int, int]:
    (video,) = folder.glob("*.mp4")
    info = probe(video)
    return info.width, info.height, info.frames


def test_text_to_video(run, workshop, tmp_path):
    _, videos = run("t2v-1.3B", workshop.dataset(tmp_path), task="t2v-14B")
    assert made(videos) == (64, 48, 9)


def test_text_to_image_from_images(run, workshop, tmp_path):
    dataset = workshop.dataset(tmp_path, images=True)
    caches, pictures = run("t2v-1.3B", dataset, task="t2i-14B", generation={"video_length": 1})
    assert list(cached(caches)) == ["latents_1x6x8_bfloat16"]
    (picture,) = pictures.glob("*.png")
    assert image_size(picture) == (64, 48)


def test_image_to_video(run, workshop, tmp_path):
    start = {"image_path": workshop.folder / "start.png"}
    caches, videos = run("i2v-14B", workshop.dataset(tmp_path), generation=start)
    found = cached(caches)
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "clip_bfloat16": (257, 160),
        "latents_3x6x8_bfloat16": (16, 3, 6, 8),
        "latents_image_3x6x8_bfloat16": (20, 3, 6, 8),
    }
    assert found["clip_bfloat16"].dtype == torch.float16
    mask = found["latents_image_3x6x8_bfloat16"][:4]
    assert mask[:, 0].eq(1).all() and not mask[:, 1:].any()
    assert made(videos) == (64, 48, 9)


def test_image_to_video_from_single_images(run, workshop, tmp_path):
    start = {"image_path": workshop.folder / "start.png", "video_length": 1}
    caches, _ = run("i2v-14B", workshop.dataset(tmp_path, images=True), generation=start)
    assert cached(caches)["latents_image_1x6x8_bfloat16"].shape == (20, 1, 6, 8)


def test_first_and_last_frame(run, workshop, tmp_path):
    """musubi-tuner's caches cannot say this: one CLIP image, and no mask for the last frame."""
    ends = {"image_path": workshop.folder / "start.png", "end_image_path": workshop.folder / "end.png"}
    caches, videos = run("flf2v-14B", workshop.dataset(tmp_path), caching={"flf2v": True}, generation=ends)
    found = cached(caches)
    assert found["clip_bfloat16"].shape == (2, 257, 160)
    mask = found["latents_image_3x6x8_bfloat16"][:4]
    assert mask[:, 0].eq(1).all() and mask[3, 2].eq(1).all() and mask.sum() == 5 * 6 * 8
    assert made(videos) == (64, 48, 9)


def test_control_video_without_an_image(run, workshop, tmp_path):
    control = {"control_path": workshop.folder / "long.mp4"}
    dataset = workshop.dataset(tmp_path, controls=1)
    caches, videos = run("t2v-1.3B-FC", dataset, task="t2v-14B-FC", generation=control)
    assert cached(caches)["latents_control_3x6x8_bfloat16"].shape == (16, 3, 6, 8)
    assert made(videos) == (64, 48, 9)


def test_control_video_with_a_start_an_end_and_a_reference_image(run, workshop, tmp_path):
    """The reference's control latents are a frame short of its image latents when there is an end image: it crashes."""
    given = {name: workshop.folder / file for name, file in (
        ("control_path", "long.mp4"), ("image_path", "start.png"), ("end_image_path", "end.png"),
        ("reference_image_path", "end.png"),
    )}  # fmt: skip
    dataset = workshop.dataset(tmp_path, controls=1)
    _, videos = run("fun-v1.1", dataset, task="i2v-14B-FC", generation={**given, "trim_tail_frames": 3})
    assert made(videos) == (64, 48, FRAMES + 4 - 3)


def test_end_image_and_trimmed_tail(run, workshop, tmp_path):
    ends = {"image_path": workshop.folder / "start.png", "end_image_path": workshop.folder / "end.png"}
    _, videos = run("i2v-14B", workshop.dataset(tmp_path), generation={**ends, "trim_tail_frames": 3})
    assert made(videos) == (64, 48, FRAMES + 4 - 3)


@pytest.mark.parametrize(("variant", "places", "controls"), [("i2v-14B", [0], 1), ("flf2v-14B", [0, 2], 2)])
def test_one_frame(run, workshop, tmp_path, variant, places, controls):
    keys = f"fp_1f_clean_indices = {places}\nfp_1f_target_index = 1"
    dataset = workshop.dataset(tmp_path, images=True, controls=controls, extra=keys)
    shown = [workshop.folder / name for name in ("start.png", "end.png")[:controls]]
    words = f"target_index=1,control_index={';'.join(map(str, places))}"
    caches, pictures = run(
        variant, dataset, caching={"one_frame": True},
        generation={"one_frame_inference": words, "control_image_path": shown, "output_type": "latent_images"},
    )  # fmt: skip
    found = cached(caches)
    assert found["clip_bfloat16"].shape == (controls, 257, 160)
    assert found["f_indices_int32"].tolist() == sorted([*places, 1])
    assert found[f"latents_{controls + 1}x6x8_bfloat16"].shape == (16, controls + 1, 6, 8)
    (picture,) = pictures.glob("*.png")
    (latent,) = pictures.glob("*_latent.safetensors")
    assert image_size(picture) == (64, 48) and load_file(latent)["latent"].shape == (16, 1, 6, 8)


def test_video_to_video(run, workshop, tmp_path):
    given = {"video_path": workshop.folder / "long.mp4", "strength": 0.5}
    _, videos = run("t2v-1.3B", workshop.dataset(tmp_path), generation=given)
    assert made(videos) == (64, 48, 9)
    (events,) = (videos / "jobs").glob("*/events.jsonl")
    steps = [row for row in map(json.loads, events.read_text().splitlines()) if row.get("unit") == "steps"]
    assert steps[-1]["total"] == 1  # half of two


def test_two_experts_text_to_video(run, engine, workshop, tmp_path):
    """Each with its own LoRA, from one training; musubi-tuner has one LoRA learn from both."""
    high = {"lora_weight_high_noise": tmp_path / "out" / "lora_high_noise.safetensors"}
    training = {"timestep_boundary": 0.5, "offload_inactive_dit": True}
    _, videos = run("t2v-A14B", workshop.dataset(tmp_path), training=training, generation=high)
    assert made(videos) == (64, 48, 9)
    low = load_file(tmp_path / "out" / "lora.safetensors")
    other = load_file(high["lora_weight_high_noise"])
    assert low.keys() == other.keys() and not all(torch.equal(low[name], other[name]) for name in low)
    assert any(value.any() for name, value in other.items() if name.endswith("lora_up.weight"))
    again = engine(
        "train", "wan", *workshop.options("t2v-A14B", "train"), "--dataset_config", tmp_path / "dataset.toml",
        "--network_weights", tmp_path / "out" / "lora.safetensors", "--network_weights_high_noise",
        high["lora_weight_high_noise"], "--network_dim", 4, "--learning_rate", 0, "--max_train_steps", 1,
        "--output_dir", tmp_path / "again", "--output_name", "lora", "--mixed_precision", "no",
    )  # fmt: skip
    assert again.status == 0, again.err
    for name, before in (("lora", low), ("lora_high_noise", other)):
        after = load_file(tmp_path / "again" / f"{name}.safetensors")
        assert all(torch.equal(after[key], value) for key, value in before.items())


def test_two_experts_image_to_video_without_clip(run, workshop, tmp_path):
    caches, videos = run(
        "i2v-A14B", workshop.dataset(tmp_path), caching={"i2v": True},
        training={"timestep_boundary": 500, "blocks_to_swap": 2, "gradient_checkpointing": True},
        generation={"image_path": workshop.folder / "start.png", "lazy_loading": True},
    )  # fmt: skip
    assert {name: tuple(value.shape) for name, value in cached(caches).items()} == {
        "latents_3x6x8_bfloat16": (16, 3, 6, 8),
        "latents_image_3x6x8_bfloat16": (20, 3, 6, 8),
    }
    assert made(videos) == (64, 48, 9)
