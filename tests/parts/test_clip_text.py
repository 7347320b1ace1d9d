"""CLIP-L's text model: transformers' pooled vector and transformers' token ids through every layout."""

from __future__ import annotations

import pytest
import torch

from engine.contract.errors import WeightsError
from engine.parts import clip_text as clip
from engine.parts import tiny_encoders as tiny
from engine.parts.weights import open_weights, write_weights

CAPTIONS = ["A red circle, moves  RIGHT!", "", "it's 4k: Übung 日本語 🐈\nand more", "circle " * 200]
METADATA = {"head_dim": "32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    tiny.write_clip(folder / "clip_l.safetensors", seed=2, width=64)
    return folder


@pytest.fixture(scope="module")
def weights(folder):
    file = open_weights(folder / "clip_l.safetensors", role="--text_encoder2")
    return {name: file.read(name) for name in file.shapes}


@pytest.fixture(scope="module")
def their_tokenizer(folder):
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder / tiny.CLIP_TOKENIZER_FOLDER, model_max_length=77)


@pytest.fixture(scope="module")
def wanted(weights, their_tokenizer):
    """Transformers' whole path: its tokenizer padded to 77, its model, its pooling (the published eos_token_id 2)."""
    from transformers import CLIPTextConfig, CLIPTextModel

    rows = weights["text_model.embeddings.token_embedding.weight"].shape[0]
    config = CLIPTextConfig(
        vocab_size=rows, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, hidden_act="quick_gelu", bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    model = CLIPTextModel(config).eval()
    model.load_state_dict({name.removeprefix("text_model."): value.float() for name, value in weights.items()})
    found = their_tokenizer(CAPTIONS, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    assert found.input_ids.shape == (4, 77)
    with torch.no_grad():
        return model(found.input_ids).pooler_output, found


def load(path, **other):
    return clip.load(open_weights(path, role="--text_encoder2"), device="cpu", **{"dtype": torch.float32, **other})


def test_pooled_vectors_are_transformers(folder, wanted):
    encoder = load(folder / "clip_l.safetensors")
    assert encoder.tokenizer.source.endswith("tokenizer_2/vocab.json")
    pooled = clip.encode(encoder, CAPTIONS)
    assert pooled.std() > 0.5 and (pooled - wanted[0]).abs().max() <= 1e-5


def test_token_ids_are_transformers(folder, wanted):
    """From vocab.json and merges.txt; and as many as the mask of 77 that musubi-tuner caches has ones."""
    rows = clip.token_rows(load(folder / "clip_l.safetensors"), CAPTIONS)
    assert [len(row) for row in rows] == wanted[1].attention_mask.sum(1).tolist()
    assert [row + [rows[0][-1]] * (77 - len(row)) for row in rows] == wanted[1].input_ids.tolist()


def test_tokenizer_json_gives_the_same(folder, their_tokenizer, tmp_path):
    their_tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    one = load(folder / "clip_l.safetensors", tokenizer=str(tmp_path))
    other = load(folder / "clip_l.safetensors", tokenizer=str(folder / tiny.CLIP_TOKENIZER_FOLDER / "merges.txt"))
    assert one.tokenizer.source == str(tmp_path / "tokenizer.json") and other.tokenizer.source.endswith("vocab.json")
    assert clip.token_rows(one, CAPTIONS) == clip.token_rows(other, CAPTIONS)


def test_captions_are_repaired_as_the_reference_does(folder):
    encoder = load(folder / "clip_l.safetensors")
    assert clip.token_rows(encoder, ["fran\u00c3\u00a7ais \u201cx\u201d"]) == clip.token_rows(
        encoder, ['fran\u00e7ais "x"']
    )


def whole_clip(weights):
    return {
        **weights,
        "vision_model.post_layernorm.bias": torch.zeros(3),
        "visual_projection.weight": torch.zeros(3, 3),
        "text_projection.weight": torch.zeros(64, 64),
        "logit_scale": torch.ones(()),
        "text_model.embeddings.position_ids": torch.arange(77)[None],
    }


@pytest.mark.parametrize(
    "prefix", ["", "text_encoder_2.", "text_encoders.clip_l.transformer.", "module.", "without text_model."]
)
def test_every_layout_loads_alike(folder, weights, wanted, tmp_path, prefix):
    if prefix.startswith("without"):
        tensors = {name.removeprefix("text_model."): value for name, value in weights.items()}
    else:
        tensors = {prefix + name: value for name, value in whole_clip(weights).items()}
    write_weights(tmp_path / "model.safetensors", tensors, metadata=METADATA)
    encoder = load(tmp_path / "model.safetensors", tokenizer=str(folder / tiny.CLIP_TOKENIZER_FOLDER))
    assert (clip.encode(encoder, CAPTIONS) - wanted[0]).abs().max() <= 1e-5


def test_a_batch_gives_what_its_captions_give_alone(folder):
    encoder = load(folder / "clip_l.safetensors")
    alone = torch.cat([clip.encode(encoder, [caption]) for caption in CAPTIONS])
    assert (clip.encode(encoder, CAPTIONS) - alone).abs().max() <= 1e-5
    assert clip.encode(encoder, []).shape == (0, 64)


def test_an_end_token_written_out_ends_the_caption(folder):
    """As in transformers, which pools at the first end token."""
    encoder = load(folder / "clip_l.safetensors")
    one, other = clip.encode(encoder, ["a cat<|endoftext|> and a dog", "a cat"])
    assert (one - other).abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_number_formats(folder, wanted, dtype):
    pooled = clip.encode(load(folder / "clip_l.safetensors", dtype=dtype), CAPTIONS)
    assert pooled.dtype == dtype and (pooled.float() - wanted[0]).norm() / wanted[0].norm() < 0.05


def test_files_that_do_not_fit(folder, weights, tmp_path):
    path = tmp_path / "model.safetensors"
    table = "text_model.embeddings.token_embedding.weight"
    write_weights(path, {name: value for name, value in weights.items() if name != table}, metadata=METADATA)
    with pytest.raises(WeightsError, match="lacks embeddings.token_embedding.weight"):
        load(path)
    write_weights(path, weights, metadata={"head_dim": "48"})
    with pytest.raises(WeightsError, match="width 64 is not a multiple of the head size 48"):
        load(path)
    write_weights(path, {**weights, table: torch.zeros(9000, 64)}, metadata=METADATA)
    with pytest.raises(WeightsError, match="for a token table of 9000 rows"):
        load(path, tokenizer=str(folder / tiny.CLIP_TOKENIZER_FOLDER))
