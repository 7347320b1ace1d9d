"""What the tests of whole commands start from (clips, pictures, the models of every variant, a run through all), and
diffusers' VAE, which conditions are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.families.wan import tiny, vae
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
def diffusers_vae():
    """A small random one, with Wan's latents."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    coder = AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2)
    return coder.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def encode(diffusers_vae, tmp_path_factory):
    """Our encoder with that VAE's weights."""
    folder = tmp_path_factory.mktemp("vae")
    diffusers_vae.save_pretrained(folder)
    coder = vae.load(folder, device="cpu", dtype=torch.float32)
    return lambda clip_BCFHW: vae.encode(coder, clip_BCFHW)


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

    def through(
        variant: str, dataset: Path, *, task: str = "", caching=None, training=None, generation=None
    ) -> tuple[Path, Path]:
        task_words = ["--task", task] if task else []
        out = tmp_path / "out"
        common = ["--dataset_config", dataset]
        for verb, more in (
            ("cache-latents", [*common, *words(caching or {})]),
            ("cache-text", common),
            ("train", [*common, *task_words, "--max_train_steps", 5, "--mixed_precision", "no", "--network_dim", 4,
                       "--learning_rate", 1e-2, "--output_dir", out, "--output_name", "lora", "--seed", 1,
                       *words(training or {})]),
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
