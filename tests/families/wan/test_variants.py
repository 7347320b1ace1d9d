"""Every Wan variant through the commands that a person types: caches, two training steps, two denoising steps.

Small random models: what is shown is that each variant's pictures reach its DiT in training and in generation.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.families.wan import tiny
from engine.media.images import image_size
from engine.media.video import probe
from tests.clips import draw_image, draw_item, draw_video

SIZE = (64, 48)
FRAMES = 9


@dataclass(frozen=True)
class Workshop:
    """Clips, pictures and the models of all variants, made once."""

    folder: Path

    @property
    def models(self) -> Path:
        return self.folder / "models"

    def options(self, variant: str, verb: str) -> list[str]:
        found = tiny.tiny_model_options(self.models, variant=variant)[verb]
        return [word for name, value in found.items() for word in (f"--{name}", value)]

    def dataset(self, folder: Path, *, images: bool = False, controls: int = 0, extra: str = "") -> Path:
        """A dataset file over the workshop's clips or images, with caches in `folder`."""
        kind = "image" if images else "video"
        lines = [
            "[general]", "resolution = [64, 48]", 'caption_extension = ".txt"', "batch_size = 2", "[[datasets]]",
            f'{kind}_directory = "{self.folder / kind}"', f'cache_directory = "{folder / "cache"}"',
            "" if images else f"target_frames = [{FRAMES}]",
            f'control_directory = "{self.folder / f"{kind} controls {controls}"}"' if controls else "", extra,
        ]  # fmt: skip
        path = folder / "dataset.toml"
        path.write_text("\n".join(lines))
        return path


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    shop = Workshop(tmp_path_factory.mktemp("workshop"))
    for variant in tiny.CONFIGS:
        tiny.write_tiny_models(shop.models, variant=variant)
    for number in range(2):
        draw_item(shop.folder / "video", f"{number}.mp4", size=SIZE, frames=FRAMES, first_number=40 * number)
        draw_video(shop.folder / "video controls 1" / f"{number}.mp4", size=SIZE, frames=FRAMES, first_number=9000)
        picture = draw_image(shop.folder / "image" / f"{number}.png", number=number, size=SIZE)
        picture.with_suffix(".txt").write_text("a bar")
        for count in (1, 2):
            for control in range(count):
                path = shop.folder / f"image controls {count}" / f"{number}_{control}.png"
                draw_image(path, number=700 * control + number, size=SIZE)
    draw_image(shop.folder / "start.png", number=5, size=(80, 60))
    draw_image(shop.folder / "end.png", number=60000, size=(60, 60))
    draw_video(shop.folder / "long.mp4", size=(80, 60), frames=FRAMES + 1, first_number=77)
    return shop


@pytest.fixture
def run(engine, workshop, tmp_path):
    """Cache, train and generate with one variant. Gives the folder of the caches and what was generated."""

    def words(options: dict[str, object]) -> list[object]:
        return [
            word
            for name, value in options.items()
            for word in (f"--{name}", *(value if isinstance(value, list) else [] if value is True else [value]))
        ]

    def through(variant: str, dataset: Path, *, task: str = "", caching=None, generation=None) -> tuple[Path, Path]:
        task_words = ["--task", task] if task else []
        out = tmp_path / "out"
        common = ["--dataset_config", dataset]
        for verb, more in (
            ("cache-latents", [*common, *words(caching or {})]),
            ("cache-text", common),
            ("train", [*common, *task_words, "--max_train_steps", 2, "--mixed_precision", "no", "--network_dim", 4,
                       "--learning_rate", 1e-2, "--output_dir", out, "--output_name", "lora", "--seed", 1]),
            ("generate", [*task_words, "--prompt", "a bar", "--video_size", 48, 64, "--video_length", FRAMES,
                          "--infer_steps", 2, "--seed", 1, "--guidance_scale", 2, "--negative_prompt", "grey",
                          "--lora_weight", out / "lora.safetensors", "--save_path", tmp_path / "video",
                          "--output_type", "both", *words(generation or {})]),
        ):  # fmt: skip
            result = engine(verb, "wan", *workshop.options(variant, verb), *more)
            assert result.status == 0, result.err
        weights = load_file(out / "lora.safetensors")
        assert any(value.any() for name, value in weights.items() if name.endswith("lora_up.weight"))
        return dataset.parent / "cache", tmp_path / "video"

    return through


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


def test_control_video_with_an_image_and_an_end_image(run, workshop, tmp_path):
    """The reference's control latents are a frame short of its image latents when there is an end image: it crashes."""
    given = {name: workshop.folder / file for name, file in (
        ("control_path", "long.mp4"), ("image_path", "start.png"), ("end_image_path", "end.png"),
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
