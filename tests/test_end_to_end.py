"""The main job on the demo's small models, through the commands that a person types."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file

from engine.demo.one_clip import judge, prepare_one_clip, read_losses
from engine.media.video import probe, read_frames


def step(prepared, verb: str):
    return next(step for step in prepared.steps if step.verb == verb)


def train(engine, prepared, out: Path, *more: object):
    words = ["--output_dir", out, "--logging_dir", out / "logs", *more]
    return engine(*step(prepared, "train").command, *words)


def test_caches_have_the_names_keys_and_metadata_of_the_reference(cached) -> None:
    latents = sorted((cached.folder / "cache").glob("*_wan.safetensors"))
    texts = sorted((cached.folder / "cache").glob("*_wan_te.safetensors"))
    assert len(latents) == len(texts) == 6
    with safe_open(latents[0], "pt") as file:
        (key,) = file.keys()
        metadata = file.metadata()
    assert key.startswith("latents_5x") and key.endswith(("_float32", "_bfloat16"))
    assert metadata["architecture"] == "wan" and metadata["format_version"] == "1.0.1"
    assert metadata["frame_count"] == "17"
    with safe_open(texts[0], "pt") as file:
        (key,) = file.keys()
        assert key.startswith("varlen_t5_")
        assert file.get_tensor(key).ndim == 2
        assert "moves" in file.metadata()["caption1"]


def test_cached_again_nothing_is_decoded(cached, engine, monkeypatch) -> None:
    def refuse(*_, **__):
        raise AssertionError("a fresh cache was decoded again")

    monkeypatch.setattr("engine.data.clips.read", refuse)
    result = engine(*step(cached, "cache-latents").command)
    assert result.status == 0, result.err


def test_a_changed_caption_makes_its_text_cache_stale(cached, engine, tmp_path) -> None:
    shutil.copytree(cached.clips, tmp_path / "clips")
    config = tmp_path / "dataset.toml"
    text = (cached.folder / "dataset.toml").read_text()
    text = text.replace(cached.clips.as_posix(), (tmp_path / "clips").as_posix())
    config.write_text(text.replace((cached.folder / "cache").as_posix(), (tmp_path / "cache").as_posix()))
    for verb in ("cache-latents", "cache-text"):
        assert engine(*step(cached, verb).command, "--dataset_config", config).status == 0
    caption = next((tmp_path / "clips").glob("*.txt"))
    caption.write_text("something else")
    refused = train(engine, cached, tmp_path / "out", "--dataset_config", config, "--max_train_steps", 1)
    assert refused.status == 2 and "cache-text" in refused.err, refused.err
    again = engine(*step(cached, "cache-text").command, "--dataset_config", config)
    assert again.status == 0 and "1" in again.err
    assert train(engine, cached, tmp_path / "out", "--dataset_config", config, "--max_train_steps", 1).status == 0


def test_one_clip_is_learned_by_heart_and_nothing_at_learning_rate_0(prepared, engine, tmp_path) -> None:
    """The demo's proof that training works, on noise that is the same in both trainings."""
    one_clip = prepare_one_clip(replace(prepared, folder=tmp_path))
    for step in one_clip.steps:
        result = engine(*step.command)
        assert result.status == 0 and "warning" not in result.err, result.err
    learning, still = read_losses(one_clip.learning), read_losses(one_clip.still)
    assert len(learning.each) == len(still.each) == 300 and learning.each[0] == still.each[0]
    assert learning.change < -0.4, learning.smoothed
    assert len({loss for _, loss in still.validation}) == 1, still.validation
    assert abs(still.change) < 0.02, still.smoothed
    assert judge(learning, still).endswith("at learning rate 0: ±0 %.")
    weights = load_file(one_clip.still / "one-clip.safetensors")
    assert not any(value.any() for name, value in weights.items() if name.endswith("lora_up.weight"))


def test_lora_and_video(cached, engine, tmp_path) -> None:
    out = tmp_path / "out"
    assert train(engine, cached, out, "--max_train_steps", 4, "--save_every_n_steps", 2).status == 0
    lora = out / "demo-lora.safetensors"
    assert (out / "demo-lora-step00000002.safetensors").exists()
    with safe_open(lora, "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_module"] == "networks.lora_wan" and metadata["ss_network_dim"] == "16"
    assert metadata["modelspec.architecture"] == "wan2.1/lora"
    keys = load_file(lora)
    assert any(key.endswith("lora_up.weight") for key in keys) and all(key.startswith("lora_unet_") for key in keys)

    videos = tmp_path / "video"
    exact = ("--crf", 0)  # what else x264 writes of small pictures is not always the same
    result = engine(
        *step(cached, "generate").command, "--lora_weight", lora, "--save_path", videos, "--infer_steps", 2, *exact,
    )  # fmt: skip
    assert result.status == 0, result.err
    (video,) = videos.glob("*.mp4")
    (latent,) = videos.glob("*_latent.safetensors")
    info = probe(video)
    assert (info.width, info.height, info.frames) == (96, 96, 17)
    decoded = engine(
        *step(cached, "generate").command, "--lora_weight", lora, "--latent_path", latent, "--save_path",
        tmp_path / "again", "--output_type", "video", *exact,
    )  # fmt: skip
    assert decoded.status == 0, decoded.err
    (second,) = (tmp_path / "again").glob("*.mp4")
    for before, after in zip(read_frames(video), read_frames(second), strict=True):
        assert (before == after).all()
