"""The small checkpoints: real files in public layouts, of which a LoRA can learn (test_end_to_end)."""

from __future__ import annotations

import dataclasses

import torch

from engine.families.hunyuan_video import model, text, tiny, vae


def test_every_file_is_small_and_loads_like_a_public_one(tmp_path) -> None:
    paths = tiny.write_tiny_models(tmp_path, seed=42)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 20e6
    assert not list(tmp_path.rglob("*.part*"))
    dit = model.load(paths["dit"], task="t2v", device="cpu")
    assert dit.config == tiny.DIT_CONFIG and dit.variant.name == "t2v"
    assert vae.load(paths["vae"], device="cpu", dtype=None).latent_channels == dit.config.in_dim
    files = {name: str(paths[name]) for name in ("text_encoder1", "text_encoder2")}
    (sample,) = text.encode(text.load(files, device="cpu", dtype="float32"), ["a red circle"])
    assert sample["llm"].shape[1] == dit.config.text_dim and sample["clipL"].shape[0] == dit.config.pooled_dim
    named = {value for options in tiny.tiny_model_options(tmp_path).values() for value in options.values()}
    assert named == {str(path) for path in paths.values()}


def test_the_same_seed_gives_the_same_weights() -> None:
    one, same, other = (tiny.dit_tensors(seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["single_blocks.0.linear1.weight"], other["single_blocks.0.linear1.weight"])


def test_the_format_of_the_weights_can_be_chosen_by_word(tmp_path) -> None:
    tiny.write_dit(
        tmp_path / "dit.safetensors", seed=1, config=dataclasses.replace(tiny.DIT_CONFIG, dim=64, num_heads=1)
    )
    assert model.load(tmp_path / "dit.safetensors", task=None, device="cpu").dtype is torch.float32
    loaded = model.load(tmp_path / "dit.safetensors", task=None, device="cpu", dit_dtype="bf16")
    assert loaded.dtype is torch.bfloat16
