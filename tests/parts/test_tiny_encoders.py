"""The small encoders: real files in the public layouts, offline, small, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.parts import clip_text, llama_text, siglip, tiny_encoders, tiny_hunyuan_vae
from engine.parts.weights import open_weights


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    import huggingface_hub

    def refuse(repository, name):
        raise AssertionError(f"{repository}/{name} was asked for")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)


def test_they_load_like_public_files_and_answer_with_unit_variance(tmp_path):
    paths = tiny_encoders.write_tiny_encoders(tmp_path, seed=4, text_width=128, pooled_width=32, image_width=72)
    tiny_hunyuan_vae.write_vae(tmp_path / "vae.safetensors", seed=4)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5e6 and not [path for path in files if path.suffix == ".part"]
    place = {"device": "cpu", "dtype": torch.float32}
    language = llama_text.load(open_weights(paths["text_encoder1"], role="--text_encoder1"), **place)
    states = llama_text.encode(language, ["a red circle moves right"])[0]
    assert states.shape[1] == 128 and len(states) < 12 and 0.5 < states.std() < 2
    pooled = clip_text.encode(
        clip_text.load(open_weights(paths["text_encoder2"], role="--text_encoder2"), **place), ["a dog", "a cat"]
    )
    assert pooled.shape == (2, 32) and 0.5 < pooled.std() < 2 and (pooled[0] - pooled[1]).norm() > 1
    vision = siglip.load(open_weights(paths["image_encoder"], role="--image_encoder"), **place)
    assert siglip.encode(vision, [np.zeros((30, 40, 3), np.uint8)]).shape == (1, 16, 72)


def test_the_template_is_spelt_in_few_tokens(tmp_path):
    """Otherwise every caption of a demo would drag hundreds of tokens behind it."""
    tiny_encoders.write_llama(tmp_path / "llama.safetensors", seed=1)
    file = open_weights(tmp_path / "llama.safetensors", role="--text_encoder1")
    encoder = llama_text.load(file, device="cpu", dtype=torch.float32)
    _, crop = llama_text.token_rows(encoder.tokenizer, [""])
    assert crop < 120


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        tiny_encoders.write_tiny_encoders(tmp_path / name, seed=seed, image_width=None)
    for path in (tmp_path / "one").rglob("*.*"):
        relative = path.relative_to(tmp_path / "one")
        assert path.read_bytes() == (tmp_path / "same" / relative).read_bytes(), relative
        if path.suffix == ".safetensors":
            assert path.read_bytes() != (tmp_path / "other" / relative).read_bytes()
    assert not (tmp_path / "one" / tiny_encoders.SIGLIP_NAME).exists()
