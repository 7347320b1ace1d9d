"""Captions to what a text cache holds, from both encoders at once."""

from __future__ import annotations

import pytest
import torch

from engine.contract.errors import OptionError, WeightsError
from engine.families.hunyuan_video import model, text
from engine.parts import clip_text, llama_text
from engine.parts.batching import batch_of_one
from engine.parts.tiny_encoders import write_tiny_encoders

CAPTIONS = ["a red circle moves right in front of a night background", "", "dog " * 400]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    paths = write_tiny_encoders(tmp_path_factory.mktemp("text"), seed=3, pooled_width=32, image_width=None)
    return {name: str(path) for name, path in paths.items()}


@pytest.fixture(scope="module")
def encoders(files):
    return text.load(files, device="cpu", dtype="float32")


def test_shapes_types_and_masks(encoders):
    for sample in text.encode(encoders, CAPTIONS):
        assert {name: tuple(tensor.shape) for name, tensor in sample.items()} == {
            "llm": (256, 64), "llm_mask": (256,), "clipL": (32,), "clipL_mask": (77,),
        }  # fmt: skip
        assert sample["llm_mask"].dtype is sample["clipL_mask"].dtype is torch.int64
        count = int(sample["llm_mask"].sum())
        assert sample["llm_mask"][:count].all() and not sample["llm"][count:].any() and sample["llm"][:count].any()


def test_masks_count_tokens_and_long_captions_are_cut(encoders):
    short, empty, long = text.encode(encoders, CAPTIONS)
    assert int(empty["llm_mask"].sum()) == 1 and int(empty["clipL_mask"].sum()) == 2  # start and end
    assert int(long["llm_mask"].sum()) == 256 and int(long["clipL_mask"].sum()) == 77
    assert 1 < int(short["llm_mask"].sum()) < 100 and 2 < int(short["clipL_mask"].sum()) < 77


def test_the_same_states_as_the_encoders_give_and_the_same_alone(encoders):
    short = text.encode(encoders, CAPTIONS)[0]
    states = llama_text.encode(encoders.llama, CAPTIONS[:1])[0]
    assert torch.allclose(short["llm"][: len(states)], states, atol=1e-5)
    assert torch.allclose(short["clipL"], clip_text.encode(encoders.clip, CAPTIONS[:1])[0], atol=1e-5)
    cond = model.cond_from_batch(batch_of_one(short, device="cpu"))
    assert torch.allclose(cond["text"][0], states, atol=1e-5) and cond["pooled"].shape == (1, 32)


def test_float16_unless_it_is_said(files):
    encoders = text.load(files, device="cpu")
    sample = text.encode(encoders, CAPTIONS[:1])[0]
    assert sample["llm"].dtype is sample["clipL"].dtype is torch.float16
    assert text.encode(text.load(files, device="cpu", fp8=True, dtype="fp32"), ["x"])[0]["llm"].dtype is torch.float32
    with pytest.raises(OptionError, match="--text_encoder_dtype"):
        text.load(files, device="cpu", dtype="int7")


def test_encoders_in_each_other_s_place_are_named(files):
    with pytest.raises(WeightsError, match="--text_encoder1 clip_l_tiny.safetensors looks like a CLIP text encoder"):
        text.load({**files, "text_encoder1": files["text_encoder2"]}, device="cpu")
    with pytest.raises(WeightsError, match="--text_encoder2 .* looks like a LLaMA text encoder"):
        text.load({**files, "text_encoder2": files["text_encoder1"]}, device="cpu")


def test_tokenizers_have_flags_of_their_own(files, tmp_path):
    with pytest.raises(WeightsError) as caught:
        text.load(files, device="cpu", tokenizer=(str(tmp_path), None))
    assert "--tokenizer1" in caught.value.hint
    with pytest.raises(WeightsError) as caught:
        text.load(files, device="cpu", tokenizer=(None, str(tmp_path)))
    assert "--tokenizer2" in caught.value.hint


def test_a_half_written_text_cache_of_musubi_tuner_is_refused():
    whole = {"latents": (16, 1, 8, 8), "llm": (256, 64), "llm_mask": (256,), "clipL": (32,), "clipL_mask": (77,)}
    assert model.check_cache(whole, guidance_scale=1.0, first_frame=True) == ""
    half = {name: shape for name, shape in whole.items() if not name.startswith("clipL")}
    assert "lacks clipL" in model.check_cache(half) and "--text_encoder2" in model.check_cache(half)
