"""The main job on HunyuanVideo's small models, through the commands that a person types."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from engine.contract.errors import DataError
from engine.demo.prepare import prepare
from engine.families.hunyuan_video import tiny
from engine.media.images import write_image
from engine.media.video import probe, read_frames
from engine.parts import clip_text

FAMILY = "hunyuan_video"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("hunyuan demo"), FAMILY, trained=False)


def step(demo, verb: str) -> list[str]:
    return next(step.command for step in demo.steps if step.verb == verb)


@pytest.fixture(scope="module")
def cached(demo, tmp_path_factory):
    from engine.__main__ import main

    for verb in ("cache-latents", "cache-text"):
        assert main([*step(demo, verb), "--job_dir", str(tmp_path_factory.mktemp("job"))]) == 0
    return demo


@pytest.fixture(scope="module")
def trained(cached, tmp_path_factory):
    """A LoRA after two steps."""
    from engine.__main__ import main

    out = tmp_path_factory.mktemp("trained")
    words = ["--max_train_steps", "2", "--output_dir", str(out), "--logging_dir", str(out / "logs")]
    assert main([*step(cached, "train"), *words, "--guidance_scale", "6"]) == 0
    return out / "demo-lora.safetensors"


@pytest.fixture(scope="module")
def skyreels(cached):
    """A SkyReels image-to-video DiT: 32 input channels."""
    path = cached.folder / "models" / "skyreels_i2v_tiny.safetensors"
    tiny.write_dit(path, seed=9, config=dataclasses.replace(tiny.DIT_CONFIG, in_dim=32))
    return path


def generate(engine, demo, lora, out, *more):
    """Two steps of a small video."""
    small = ("--video_size", 64, 64, "--video_length", 9, "--infer_steps", 2)
    return engine(*step(demo, "generate"), "--lora_weight", lora, "--save_path", out, *small, *more)


def test_caches_have_the_names_keys_and_metadata_of_musubi_tuner(cached) -> None:
    latents = sorted((cached.folder / "cache").glob("*_hv.safetensors"))
    texts = sorted((cached.folder / "cache").glob("*_hv_te.safetensors"))
    assert len(latents) == len(texts) == 6
    with safe_open(latents[0], "pt") as file:
        (key,) = file.keys()
        assert key.startswith("latents_5x") and key.endswith("_float16")
        assert file.metadata()["architecture"] == "hunyuan_video" and file.metadata()["frame_count"] == "17"
    with safe_open(texts[0], "pt") as file:
        assert set(file.keys()) == {"llm_float16", "llm_mask", "clipL_float16", "clipL_mask"}
        assert file.metadata()["architecture"] == "hunyuan_video" and "moves" in file.metadata()["caption1"]


def test_caching_again_writes_the_same_latents(cached, engine, tmp_path) -> None:
    """musubi-tuner's caches hold another draw of the posterior each time."""
    config = tmp_path / "dataset.toml"
    text = (cached.folder / "dataset.toml").read_text()
    config.write_text(text.replace((cached.folder / "cache").as_posix(), (tmp_path / "cache").as_posix()))
    assert engine(*step(cached, "cache-latents"), "--dataset_config", config).status == 0
    again = sorted((tmp_path / "cache").glob("*_hv.safetensors"))
    assert len(again) == 6
    for path in again:
        for key, tensor in load_file(cached.folder / "cache" / path.name).items():
            assert torch.equal(load_file(path)[key], tensor), path.name


def test_an_interruption_leaves_no_half_text_cache(cached, engine, tmp_path, monkeypatch) -> None:
    """musubi-tuner encodes with the LLM first and with CLIP afterwards, into the same files."""
    config = tmp_path / "dataset.toml"
    text = (cached.folder / "dataset.toml").read_text()
    config.write_text(text.replace((cached.folder / "cache").as_posix(), (tmp_path / "cache").as_posix()))
    real, calls = clip_text.encode, []

    def breaks(encoder, captions):
        calls.append(captions)
        if len(calls) > 2:
            raise DataError("the lights went out")
        return real(encoder, captions)

    monkeypatch.setattr(clip_text, "encode", breaks)
    result = engine(*step(cached, "cache-text"), "--dataset_config", config, "--batch_size", 2)
    assert result.status != 0 and "the lights went out" in result.err
    written = sorted((tmp_path / "cache").glob("*_hv_te.safetensors"))
    assert len(written) == 4 and all(len(load_file(path)) == 4 for path in written)


def test_training_scales_the_cached_latents(cached, engine, tmp_path, monkeypatch) -> None:
    """Caches hold them unscaled; the DiT knows them times 0.476986, as generation gives them to it."""
    from engine.training import micro_batch

    seen, real = [], micro_batch.flow_error

    def watched(velocity, latents_BCTHW, cond, **more):
        seen.append((latents_BCTHW, cond))
        return real(velocity, latents_BCTHW, cond, **more)

    monkeypatch.setattr(micro_batch, "flow_error", watched)
    words = ("--max_train_steps", 1, "--output_dir", tmp_path, "--logging_dir", tmp_path / "logs")
    assert engine(*step(cached, "train"), *words, "--guidance_scale", 6).status == 0
    latents_BCTHW, cond = seen[0]
    caches = [load_file(path) for path in (cached.folder / "cache").glob("*_hv.safetensors")]
    scaled = [0.476986 * tensor.float() for cache in caches for tensor in cache.values()]
    assert any(one.shape == latents_BCTHW[0].shape and torch.allclose(one, latents_BCTHW[0]) for one in scaled)
    assert cond["guidance"].tolist() == [6000.0]


def test_the_lora_says_what_it_is(trained) -> None:
    with safe_open(trained, "pt") as file:
        metadata, names = file.metadata(), list(file.keys())
    assert metadata["ss_network_module"] == "networks.lora" and metadata["ss_base_model_version"] == "hv"
    assert metadata["modelspec.architecture"].startswith("hunyuan-video") and metadata["ss_guidance_scale"] == "6.0"
    assert "diffusion_model.single_blocks.0.linear1.lora_A.weight" in names  # what ComfyUI loads whole
    assert not any("_mod." in name or "modulation" in name for name in names)


def test_a_video_its_latent_and_decoding_it_again(cached, trained, engine, tmp_path) -> None:
    exact = ("--crf", 0)  # what else x264 writes of small pictures is not always the same
    made = generate(engine, cached, trained, tmp_path, "--guidance_scale", 2, "--negative_prompt", "rain", *exact)
    assert made.status == 0, made.err
    (video,) = tmp_path.glob("*.mp4")
    (latent,) = tmp_path.glob("*_latent.safetensors")
    info = probe(video)
    assert (info.width, info.height, info.frames, round(info.fps)) == (64, 64, 9, 24)
    with safe_open(latent, "pt") as file:
        assert file.get_tensor("latent").shape == (16, 3, 8, 8)
        assert file.metadata()["embedded_cfg_scale"] == "6.0" and file.metadata()["video_length"] == "9"
    words = ("--latent_path", latent, "--output_type", "video", *exact)
    decoded = generate(engine, cached, trained, tmp_path / "again", *words)
    assert decoded.status == 0, decoded.err
    (second,) = (tmp_path / "again").glob("*.mp4")
    for before, after in zip(read_frames(video), read_frames(second), strict=True):
        assert (before == after).all()


def test_split_uncond_makes_the_same_video(cached, trained, engine, tmp_path) -> None:
    latents = []
    for more in ((), ("--split_uncond",)):
        out = tmp_path / str(len(more))
        words = ("--guidance_scale", 3, "--output_type", "latent", *more)
        assert generate(engine, cached, trained, out, *words).status == 0
        (path,) = out.glob("*_latent.safetensors")
        latents.append(load_file(path)["latent"])
    assert torch.allclose(*latents, atol=1e-4)


def test_video_to_video_keeps_more_the_lower_the_strength(cached, trained, engine, tmp_path) -> None:
    source = next(cached.clips.glob("*.mp4"))
    kept = {}
    for strength in (0.1, 1.0):
        out = tmp_path / str(strength)
        words = ("--video_path", source, "--strength", strength, "--infer_steps", 10, "--flow_shift", 1)
        made = generate(engine, cached, trained, out, *words)
        assert made.status == 0, made.err
        (path,) = out.glob("*_latent.safetensors")
        kept[strength] = load_file(path)["latent"]
        with safe_open(path, "pt") as file:
            assert file.metadata()["strength"] == str(strength) and file.metadata()["video_path"] == source.name
    plain = generate(engine, cached, trained, tmp_path / "plain", "--infer_steps", 10, "--flow_shift", 1)
    assert plain.status == 0
    (path,) = (tmp_path / "plain").glob("*_latent.safetensors")
    assert torch.allclose(kept[1.0], load_file(path)["latent"], atol=1e-4)  # all of it is remade
    assert not torch.allclose(kept[0.1], kept[1.0], atol=0.1)


def test_skyreels_image_to_video_trains_and_generates(cached, skyreels, engine, tmp_path) -> None:
    words = ("--dit", skyreels, "--dit_in_channels", 32, "--max_train_steps", 2, "--output_dir", tmp_path / "out")
    done = engine(*step(cached, "train"), *words, "--logging_dir", tmp_path / "logs")
    assert done.status == 0, done.err
    write_image(tmp_path / "a.png", np.full((80, 90, 3), (200, 60, 30), np.uint8))
    lora = tmp_path / "out" / "demo-lora.safetensors"
    made = generate(engine, cached, lora, tmp_path / "video", "--dit", skyreels, "--image_path", tmp_path / "a.png")
    assert made.status == 0, made.err
    assert len(list((tmp_path / "video").glob("*.mp4"))) == 1


def test_a_checkpoint_of_another_kind_is_refused_with_the_way_out(cached, skyreels, trained, engine, tmp_path) -> None:
    refused = generate(engine, cached, trained, tmp_path, "--dit", skyreels)
    assert refused.status == 2 and "has no image to start from" in refused.err and "--image_path" in refused.err
    write_image(tmp_path / "a.png", np.full((80, 90, 3), (200, 60, 30), np.uint8))
    refused = generate(engine, cached, trained, tmp_path, "--image_path", tmp_path / "a.png")
    assert refused.status == 2 and "It can do t2v" in refused.err
    refused = engine(*step(cached, "train"), "--dit_in_channels", 32, "--output_dir", tmp_path / "out")
    assert refused.status == 2 and "It can do t2v" in refused.err


def test_prompts_from_a_file_and_fp8(cached, trained, engine, tmp_path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle --d 1 --g 1\na blue square --f 1 --w 96\n")
    words = [word for word in step(cached, "generate")]
    config = tmp_path / "generate.toml"
    text = open(words[words.index("--config_file") + 1], encoding="utf-8").read()
    config.write_text("\n".join(line for line in text.splitlines() if not line.startswith("prompt =")))
    words[words.index("--config_file") + 1] = str(config)
    small = ("--video_size", 64, 64, "--video_length", 9, "--infer_steps", 2, "--lora_weight", trained)
    more = ("--exclude_single_blocks", "--fp8_scaled", "--fp8_llm", "--text_encoder_dtype", "float32")
    made = engine(*words, *small, *more, "--from_file", tmp_path / "prompts.txt", "--save_path", tmp_path / "out")
    assert made.status == 0, made.err
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 1 and len(list((tmp_path / "out").glob("*.png"))) == 1


def test_one_clip_is_learnt_by_heart(cached, engine, tmp_path) -> None:
    """What the small models are for: the loss falls, so latents, text and guidance reach the DiT."""
    one = tmp_path / "clip"
    one.mkdir()
    for source in sorted(cached.clips.glob("red_circle*")):
        (one / source.name).write_bytes(source.read_bytes())
    config = tmp_path / "one.toml"
    text = (cached.folder / "dataset.toml").read_text()
    text = text.replace(cached.clips.as_posix(), one.as_posix())
    config.write_text(text.replace((cached.folder / "cache").as_posix(), (tmp_path / "cache").as_posix()))
    for verb in ("cache-latents", "cache-text"):
        assert engine(*step(cached, verb), "--dataset_config", config).status == 0
    words = ("--dataset_config", config, "--max_train_steps", 60, "--save_every_n_steps", 60)
    done = engine(*step(cached, "train"), *words, "--output_dir", tmp_path / "on", "--logging_dir", tmp_path / "logs")
    assert done.status == 0, done.err
    (events,) = (tmp_path / "on").glob("jobs/*/events.jsonl")
    rows = [json.loads(line) for line in events.read_text().splitlines()]
    losses = [row["values"]["loss/current"] for row in rows if row["event"] == "metric"]
    assert sum(losses[-15:]) < 0.6 * sum(losses[:15]), losses
