"""One-frame training: what is cached beside an image is what one-frame inference gives the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from engine.contract.errors import DataError
from engine.data.cache import plain_name
from engine.data.clips import plan, read
from engine.data.config import load_config
from engine.data.items import sources
from engine.families.framepack import model, one_frame, tiny, vae
from engine.families.values import Clips

from ...clips import draw_image
from .pieces import request

SIZE = (64, 48)  # width, height
RECIPES = {  # the dataset's keys, what inference is told for the same, and further words of the latter
    "default": ("", "default", {}),
    "1f-mc": ("fp_1f_clean_indices = [0, 1]\nfp_1f_target_index = 9", "target_index=9,control_index=0;1", {}),
    "kisekaeichi": (
        "fp_1f_clean_indices = [0, 10]\nfp_1f_target_index = 1\nfp_1f_no_post = true",
        "target_index=1,control_index=0;10,no_post,no_2x,no_4x",
        {"no_2x": True, "no_4x": True},
    ),
}


def write_dataset(folder: Path, keys: str, *, alpha: bool = True) -> Path:
    """One image with two controls, of which the second (larger than the image, of another shape) has an alpha."""
    draw_image(folder / "images" / "look.png", size=SIZE, number=3)
    (folder / "images" / "look.txt").write_text("a bar")
    draw_image(folder / "controls" / "look.png", size=SIZE, number=5)
    coat = draw_image(folder / "controls" / "look_1.png", size=(160, 96), number=9)
    if alpha:
        picture, opaque = Image.open(coat).convert("RGB"), np.zeros((96, 160), dtype=np.uint8)
        opaque[:, 40:90] = 255
        picture.putalpha(Image.fromarray(opaque))
        picture.save(coat)
    file = folder / "dataset.toml"
    file.write_text(
        f"[general]\nresolution = [{SIZE[0]}, {SIZE[1]}]\ncaption_extension = '.txt'\n[[datasets]]\n"
        f"image_directory = '{(folder / 'images').as_posix()}'\n"
        f"control_directory = '{(folder / 'controls').as_posix()}'\n"
        f"cache_directory = '{(folder / 'cache').as_posix()}'\n{keys}\n"
    )
    return file


@pytest.mark.parametrize("name", RECIPES)
def test_a_cached_sample_is_what_inference_builds(name, paths, encoders, engine, tmp_path):
    keys, places, settings = RECIPES[name]
    config = write_dataset(tmp_path, keys)
    flags = [f"--one_frame_{key}" for key in settings]
    done = engine(
        "cache-latents", "framepack", "--vae", paths["vae"], "--image_encoder", paths["image_encoder"],
        "--dataset_config", config, "--one_frame", *flags, "--vae_dtype", "float32", "--device", "cpu",
    )  # fmt: skip
    assert done.status == 0, done.err
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    assert file.name == "look_0064x0048_fp.safetensors"
    cached = {plain_name(key): tensor for key, tensor in load_file(file).items()}
    controls = (tmp_path / "controls/look.png", tmp_path / "controls/look_1.png")[: 1 if name == "default" else 2]
    asked = request(one_frame=places, control_image_path=controls, latent_window_size=9)
    wanted = one_frame.conditioning(asked, one_frame.prepare(asked, encoders))
    latents = cached.pop("latents")
    assert latents.shape == (16, 1, 6, 8) and cached.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert torch.allclose(cached[key], tensor, atol=1e-6), key
        assert cached[key].is_floating_point() == tensor.is_floating_point()


def test_the_reference_reads_these_caches(paths, engine, tmp_path):
    """Names, shapes and types as musubi-tuner writes them for kisekaeichi with its zeros."""
    config = write_dataset(tmp_path, "fp_1f_clean_indices = [0, 10]\nfp_1f_target_index = 1")
    command = (
        "cache-latents", "framepack", "--vae", paths["vae"], "--image_encoder", paths["image_encoder"],
        "--dataset_config", config, "--one_frame", "--device", "cpu",
    )  # fmt: skip
    assert engine(*command).status == 0
    with safe_open(next((tmp_path / "cache").glob("*.safetensors")), "pt") as file:
        found = {key: file.get_slice(key).get_shape() for key in file.keys()}
        assert file.get_tensor("clean_latent_indices_int64").tolist() == [0, 10, 10]  # the zeros follow the window
        assert file.get_tensor("latent_indices_int64").tolist() == [1]
        assert "frame_count" not in file.metadata()
    assert found == {
        "latents_1x6x8_float16": [16, 1, 6, 8], "latents_clean_1x6x8_float16": [16, 3, 6, 8],
        "latent_indices_int64": [1], "clean_latent_indices_int64": [3], "clean_latent_2x_indices_int64": [2],
        "clean_latent_4x_indices_int64": [16], "image_embeddings_float16": [16, 48],
    }  # fmt: skip


@pytest.mark.parametrize("change", ["fp_1f_no_post = true", "fp_1f_target_index = 5", "fp_latent_window_size = 4"])
def test_other_places_make_the_cache_anew(change, paths, engine, tmp_path):
    config = write_dataset(tmp_path, "")
    command = (
        "cache-latents", "framepack", "--vae", paths["vae"], "--image_encoder", paths["image_encoder"],
        "--dataset_config", config, "--one_frame", "--device", "cpu",
    )  # fmt: skip
    assert engine(*command).status == 0 and "1 were there" in engine(*command).err
    config.write_text(config.read_text() + change + "\n")
    assert "1 clips cached" in engine(*command).err


def clips(folder: Path, keys: str = "", **changed) -> Clips:
    """As the caching task makes them of the dataset's only image."""
    (dataset,) = load_config(write_dataset(folder, keys), say=lambda event: None).datasets
    (source,) = sources(dataset, say=lambda event: None)
    (clip,) = read(plan(source, target_fps=30), target_fps=30)

    def pixels(frames_FHWC: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(frames_FHWC).permute(3, 0, 1, 2)[None].float() / 127.5 - 1

    values = {
        "frames_BCFHW": pixels(clip.frames_FHWC),
        "controls_BCFHW": tuple(map(pixels, clip.controls_FHWC)),
        "alphas_BHW": tuple(None if a is None else torch.from_numpy(a)[None].float() / 255 for a in clip.alphas_HW),
        "is_image": True,
        "clean_indices": dataset.fp_1f_clean_indices,
        "target_index": dataset.fp_1f_target_index,
        "no_post": dataset.fp_1f_no_post,
    }
    return Clips(**{**values, **changed})


def samples(encoders, given: Clips):
    return vae.training_samples(
        encoders.vae, given, dtype=torch.float32, image_encoder=encoders.image, one_frame=True
    )[0][0]  # fmt: skip


def test_places_reach_the_model(encoders, tmp_path):
    sample = samples(encoders, clips(tmp_path, RECIPES["kisekaeichi"][0]))
    batch = {name: torch.stack([tensor, tensor]) for name, tensor in sample.items()} | {
        "llama_vec": torch.zeros(2, 512, 64), "llama_attention_mask": torch.ones(2, 512, dtype=torch.bool),
        "clip_l_pooler": torch.zeros(2, 64),
    }  # fmt: skip
    cond = model.cond_from_batch(batch)
    assert cond["indices"] == [[1], [1]] and cond["clean_indices"] == [[0, 10], [0, 10]]
    assert cond["clean_4x"].shape == (2, 16, 16, 6, 8) and not cond["clean_4x"].any()
    assert model.check_cache({name: tuple(tensor.shape[1:]) for name, tensor in batch.items()}) == ""
    assert model.check_values(sample, task="i2v") == model.check_values(sample, task="f1") == ""  # of either release


def test_only_the_opaque_part_of_a_control_counts(encoders, tmp_path):
    given = clips(tmp_path, RECIPES["kisekaeichi"][0])
    masked = samples(encoders, given)["latents_clean"]
    plain = samples(encoders, Clips(**{**vars(given), "alphas_BHW": (None, None)}))["latents_clean"]
    assert torch.equal(masked[:, 0], plain[:, 0])
    assert masked[:, 1, :, -1].abs().max() < 0.05 < plain[:, 1, :, -1].abs().max()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"controls_BCFHW": ()}, "control_directory"),
        ({"clean_indices": (0,)}, "2 control images and 1 fp_1f_clean_indices"),
        ({"frames_BCFHW": torch.zeros(1, 3, 1, 32, 32)}, "no_resize_control"),
        ({"frames_BCFHW": torch.zeros(1, 3, 5, 48, 64)}, "image_directory"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(changed, told, encoders, tmp_path):
    with pytest.raises(DataError) as caught:
        samples(encoders, clips(tmp_path, RECIPES["1f-mc"][0], **changed))
    assert told in f"{caught.value.message} {caught.value.hint}"


def test_caching_training_and_generation(engine, tmp_path):
    config = write_dataset(tmp_path, RECIPES["kisekaeichi"][0])
    tiny.write_tiny_models(tmp_path / "models")
    options = tiny.tiny_model_options(tmp_path / "models")
    del options["generate"]["video_sections"]
    models = {verb: [word for name in given for word in (f"--{name}", given[name])] for verb, given in options.items()}
    data = ("--dataset_config", config, "--device", "cpu")
    for verb, more in (("cache-latents", ("--one_frame",)), ("cache-text", ())):
        assert engine(verb, "framepack", *models[verb], *data, *more).status == 0
    trained = engine(
        "train", "framepack", *models["train"], *data, "--max_train_steps", 2, "--network_dim", 4, "--one_frame",
        "--mixed_precision", "no", "--output_dir", tmp_path / "out", "--output_name", "coat",
    )  # fmt: skip
    assert trained.status == 0, trained.err
    made = engine(
        "generate", "framepack", *models["generate"], "--prompt", "a bar", "--one_frame_inference",
        RECIPES["kisekaeichi"][1], "--control_image_path", tmp_path / "controls/look.png",
        tmp_path / "controls/look_1.png", "--video_size", 48, 64, "--infer_steps", 2, "--output_type", "images",
        "--lora_weight", tmp_path / "out/coat.safetensors", "--save_path", tmp_path / "made", "--device", "cpu",
    )  # fmt: skip
    assert made.status == 0, made.err
    assert Image.open(next((tmp_path / "made").rglob("*.png"))).size == SIZE
