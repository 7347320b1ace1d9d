"""FramePack's text conditioning as caches and generation have it."""

from __future__ import annotations

import pytest
import torch

from engine.contract.errors import WeightsError
from engine.families.framepack import text
from engine.parts import clip_text, llama_text


@pytest.fixture(scope="module")
def files(paths) -> dict[str, str]:
    return {name: str(paths[name]) for name in ("text_encoder1", "text_encoder2")}


@pytest.fixture(scope="module")
def encoder(files) -> text.TextEncoders:
    return text.load(files, device="cpu")


def test_states_are_padded_to_512_and_masked(encoder):
    (made,) = text.encode(encoder, ["a red circle moves right"])
    (states,) = llama_text.encode(encoder.llama, ["a red circle moves right"])
    count = len(states)
    assert made["llama_vec"].shape == (512, 64) and made["llama_vec"].dtype == torch.float16
    assert made["llama_attention_mask"].dtype == torch.bool and int(made["llama_attention_mask"].sum()) == count
    assert torch.equal(made["llama_vec"][:count], states.half()) and not made["llama_vec"][count:].any()
    pooled = clip_text.encode(encoder.clip, ["a red circle moves right"])[0]
    assert torch.equal(made["clip_l_pooler"], pooled.half())


def test_captions_in_a_batch_are_as_alone(encoder):
    captions = ["a red circle", "", "a yellow star moves down, and a purple hexagon waits"]
    together = text.encode(encoder, captions)
    for caption, made in zip(captions, together, strict=True):
        (alone,) = text.encode(encoder, [caption])
        assert torch.equal(made["llama_attention_mask"], alone["llama_attention_mask"])
        assert all(torch.allclose(made[name].float(), alone[name].float(), atol=2e-3) for name in alone)


def test_an_empty_caption_counts_one_token(encoder):
    """A negative prompt is empty as a rule, and the mean of no tokens does not exist."""
    (made,) = text.encode(encoder, [""])
    assert int(made["llama_attention_mask"].sum()) == 1 and torch.isfinite(made["llama_vec"]).all()


def test_a_custom_system_prompt_is_cut_off_by_its_own_length(files, encoder):
    """The published count of 95 tokens holds for the published prompt only."""
    own = text.load(files, device="cpu", system_prompt="Say what you see.")
    (made,), (plain,) = text.encode(own, ["a red circle"]), text.encode(encoder, ["a red circle"])
    assert torch.equal(made["llama_attention_mask"], plain["llama_attention_mask"])
    assert not torch.equal(made["llama_vec"], plain["llama_vec"])


def test_fp8_is_close(files, encoder):
    (made,), (plain,) = (
        text.encode(one, ["a red circle"]) for one in (text.load(files, device="cpu", fp8=True), encoder)
    )
    difference = (made["llama_vec"].float() - plain["llama_vec"].float()).norm() / plain["llama_vec"].float().norm()
    assert 0 < difference < 0.1


def test_files_given_the_wrong_way_round_are_named(files):
    swapped = {"text_encoder1": files["text_encoder2"], "text_encoder2": files["text_encoder1"]}
    with pytest.raises(WeightsError, match="--text_encoder1.* CLIP text encoder") as caught:
        text.load(swapped, device="cpu")
    assert "--text_encoder2" in caught.value.hint
