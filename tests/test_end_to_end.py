"""The main job on the demo's small models, through the commands that a person types."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from engine.media.video import probe, read_frames


@pytest.fixture(scope="module")
def cached(tmp_path_factory, prepared):
    """The prepared demo with both caches made."""
    from engine.__main__ import main

    for step in prepared.steps[:2]:
        assert main([*step.command, "--job_dir", str(tmp_path_factory.mktemp("job"))]) == 0
    return prepared


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
    import shutil

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


def losses(out: Path) -> list[float]:
    (events,) = out.glob("jobs/*/events.jsonl")
    rows = [json.loads(line) for line in events.read_text().splitlines()]
    return [row["values"]["loss/current"] for row in rows if row["event"] == "metric"]


def test_training_on_one_clip_learns_and_not_at_learning_rate_0(cached, engine, tmp_path) -> None:
    config = tmp_path / "one.toml"
    one = tmp_path / "clip"
    one.mkdir()
    for source in sorted(cached.clips.glob("red_circle*")):
        (one / source.name).write_bytes(source.read_bytes())
    text = (cached.folder / "dataset.toml").read_text()
    text = text.replace(cached.clips.as_posix(), one.as_posix())
    config.write_text(text.replace((cached.folder / "cache").as_posix(), (tmp_path / "cache").as_posix()))
    for verb in ("cache-latents", "cache-text"):
        assert engine(*step(cached, verb).command, "--dataset_config", config).status == 0
    common = ("--dataset_config", config, "--max_train_steps", 300, "--save_every_n_steps", 300)
    assert train(engine, cached, tmp_path / "on", *common).status == 0
    learned = losses(tmp_path / "on")
    assert len(learned) == 300
    early, late = sum(learned[:30]) / 30, sum(learned[-30:]) / 30
    assert late < 0.6 * early, f"{early:.3f} -> {late:.3f}"
    assert (tmp_path / "on" / "demo-lora_loss.png").stat().st_size > 5000
    assert train(engine, cached, tmp_path / "off", *common, "--learning_rate", 0).status == 0
    still = losses(tmp_path / "off")
    assert abs(sum(still[-150:]) / sum(still[:150]) - 1) < 0.2
    weights = load_file(tmp_path / "off" / "demo-lora.safetensors")
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
    result = engine(
        *step(cached, "generate").command, "--lora_weight", lora, "--save_path", videos, "--infer_steps", 2,
    )  # fmt: skip
    assert result.status == 0, result.err
    (video,) = videos.glob("*.mp4")
    (latent,) = videos.glob("*_latent.safetensors")
    info = probe(video)
    assert (info.width, info.height, info.frames) == (96, 96, 17)
    decoded = engine(
        *step(cached, "generate").command, "--lora_weight", lora, "--latent_path", latent, "--save_path",
        tmp_path / "again", "--output_type", "video",
    )  # fmt: skip
    assert decoded.status == 0, decoded.err
    (second,) = (tmp_path / "again").glob("*.mp4")
    for before, after in zip(read_frames(video), read_frames(second), strict=True):
        assert (before == after).all()
