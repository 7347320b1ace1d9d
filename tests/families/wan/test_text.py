"""The Wan text encoder: every layout gives the same numbers, captions are cleaned and cut as Wan does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.contract.errors import WeightsError
from engine.families.wan import text, tiny
from engine.families.wan.detect import TEXT_TOKENS
from engine.families.wan.keys import text_name
from engine.parts.weights import write_weights

CAPTIONS = ["a red circle moves right", "", "a blue square, and a green star behind it"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The tiny text encoder's weights under Wan's names, its tokenizer's bytes, and a folder with both."""
    folder = tmp_path_factory.mktemp("text")
    paths = tiny.write_tiny_models(folder, seed=5)
    return torch.load(paths["t5"], weights_only=True), paths["tokenizer"].read_bytes(), folder


@pytest.fixture(scope="module")
def encoder(models):
    return text.load_umt5(models[2] / tiny.TEXT_NAME, device="cpu", dtype=torch.float32)


def load(path, **options):
    return text.load_umt5(path, device="cpu", dtype=torch.float32, **options)


def equal(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape and (one - other).abs().max() <= 1e-5


def test_transformers_files_give_the_same_numbers(models, encoder, tmp_path):
    """`shared.weight`, `encoder.embed_tokens.weight`, or both may be in the file."""
    weights, _, folder = models
    renamed = {text_name(name): value for name, value in weights.items()}
    wanted = text.states(encoder, CAPTIONS)
    table = renamed.pop("shared.weight")
    for names in (["shared.weight"], ["encoder.embed_tokens.weight"], ["shared.weight", "encoder.embed_tokens.weight"]):
        path = tmp_path / "model.safetensors"
        write_weights(path, renamed | dict.fromkeys(names, table))
        equal(text.states(load(path, tokenizer=str(folder / tiny.TOKENIZER_NAME)), CAPTIONS), wanted)


def test_comfyui_file_brings_its_tokenizer(models, encoder, tmp_path):
    weights, tokenizer, _ = models
    tensors = {text_name(name): value for name, value in weights.items()}
    tensors["spiece_model"] = torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8)
    write_weights(tmp_path / "umt5_xxl_fp16.safetensors", tensors)
    found = load(tmp_path / "umt5_xxl_fp16.safetensors")
    assert "embedded" in found.tokenizer.source
    equal(text.states(found, CAPTIONS), text.states(encoder, CAPTIONS))


@pytest.fixture
def scaled_fp8(models, tmp_path) -> tuple[Path, dict[str, torch.Tensor]]:
    """ComfyUI's scaled fp8 kind: codes, a scale a layer, a marker; and the weights that it stands for."""
    weights, tokenizer, _ = models
    tensors = {"spiece_model": torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8)}
    tensors["scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    meant = {}
    for name, value in weights.items():
        ours = text_name(name)
        if value.ndim == 2 and "block" in ours and "relative" not in ours:
            scale = value.abs().max() / 448
            tensors[ours] = (value / scale).to(torch.float8_e4m3fn)
            tensors[ours.removesuffix("weight") + "scale_weight"] = scale
            meant[name] = tensors[ours].float() * scale
        else:
            tensors[ours] = meant[name] = value
    write_weights(tmp_path / "umt5_xxl_fp8_e4m3fn_scaled.safetensors", tensors)
    return tmp_path / "umt5_xxl_fp8_e4m3fn_scaled.safetensors", meant


def test_scaled_fp8_file(scaled_fp8, models, tmp_path):
    path, meant = scaled_fp8
    write_weights(tmp_path / "meant.safetensors", meant)
    wanted = text.states(load(tmp_path / "meant.safetensors", tokenizer=str(models[2] / tiny.TOKENIZER_NAME)), CAPTIONS)
    read = torch.cat(text.states(load(path), CAPTIONS)) - torch.cat(wanted)
    assert read.norm() / torch.cat(wanted).norm() < 0.01  # multiplied out to bf16
    kept = load(path, fp8=True)
    equal(text.states(kept, CAPTIONS), wanted)  # the file's own codes: nothing is rounded twice
    assert kept.model.encoder.block[0].layer[0].SelfAttention.q.codes.dtype == torch.float8_e4m3fn


def test_fp8_t5_is_close_and_small(models, encoder):
    """Plain casts to fp8 (musubi-tuner's --fp8_t5) lose small weights; scaled rows do not."""
    path = models[2] / tiny.TEXT_NAME
    half = load(path, fp8=True)
    wanted = torch.cat(text.states(encoder, CAPTIONS))
    error = (torch.cat(text.states(half, CAPTIONS)) - wanted).norm() / wanted.norm()
    assert error < 0.1
    linears = [layer for layer in half.model.modules() if type(layer).__name__ == "StoredFp8Linear"]
    assert len(linears) == 7 * tiny.TEXT_LAYERS
    assert half.model.shared.weight.dtype == torch.float32

    small = {name: value * 0.01 if ".attn.v." in name else value for name, value in models[0].items()}
    small = {name: value * 100 if ".attn.o." in name else value for name, value in small.items()}
    torch.save(small, path.with_name("small.pth"))
    found = torch.cat(text.states(load(path.with_name("small.pth"), fp8=True), CAPTIONS))
    assert (found - wanted).norm() / wanted.norm() < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_number_formats(models, encoder, dtype):
    for fp8 in (False, True):
        found = text.load_umt5(models[2] / tiny.TEXT_NAME, device="cpu", dtype=dtype, fp8=fp8)
        states = text.states(found, CAPTIONS)
        assert all(one.dtype == dtype for one in states)
        wanted = torch.cat(text.states(encoder, CAPTIONS))
        assert (torch.cat(states).float() - wanted).norm() / wanted.norm() < 0.1


def test_transformers_own_model_agrees(models, encoder):
    """Built from its own configuration, with transformers' attention, and asked as Wan does: padded to 512, masked."""
    from transformers import UMT5Config, UMT5EncoderModel

    sizes = {"d_model": 64, "d_kv": 32, "d_ff": tiny.TEXT_FFN, "num_heads": tiny.TEXT_HEADS}
    layers = {"num_layers": tiny.TEXT_LAYERS, "relative_attention_num_buckets": tiny.TEXT_BUCKETS}
    config = UMT5Config(vocab_size=tiny.VOCABULARY, feed_forward_proj="gated-gelu", **sizes, **layers)
    theirs = UMT5EncoderModel(config).eval()
    theirs.load_state_dict({text_name(name): value.float() for name, value in models[0].items()}, strict=False)
    rows = [encoder.tokenizer.ids(text.clean(caption), limit=512) for caption in CAPTIONS]
    ids = torch.zeros(len(rows), 512, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
    with torch.no_grad():
        states = theirs(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
    equal(text.states(encoder, CAPTIONS), [states[i, : len(row)] for i, row in enumerate(rows)])


def test_a_batch_gives_what_its_captions_give_alone(encoder):
    equal(text.states(encoder, CAPTIONS), [text.states(encoder, [caption])[0] for caption in CAPTIONS])
    assert text.states(encoder, []) == []


def test_samples_for_the_cache_are_whole_and_unpadded(encoder):
    samples = text.encode(encoder, CAPTIONS)
    assert [list(sample) for sample in samples] == [["varlen_t5"]] * 3
    assert samples[1]["varlen_t5"].shape == (1, tiny.DIT_CONFIG.text_dim)
    states = samples[0]["varlen_t5"]
    assert states.untyped_storage().nbytes() == states.numel() * states.element_size()


def test_long_captions_are_cut_at_512_with_the_end_token(encoder):
    row = encoder.tokenizer.ids("circle " * 2000, limit=TEXT_TOKENS)
    assert len(row) == 512 and row[-1] == encoder.tokenizer.end_id and row.count(encoder.tokenizer.end_id) == 1
    assert text.states(encoder, ["circle " * 2000])[0].shape[0] == 512


def test_tokens_are_counted_as_they_are_read(encoder):
    """The end token is none of the caption's: 511 are all that a caption can have."""
    captions = ["a  red\ncircle &amp; more", "", "circle " * 2000]
    counts = text.token_counts(encoder, captions)
    rows = [encoder.tokenizer.ids(text.clean(caption)) for caption in captions]
    assert [count.tokens for count in counts] == [len(row) - 1 for row in rows]
    read = [len(states) - 1 for states in text.states(encoder, captions)]
    assert [count.read for count in counts] == read and read[1:] == [0, 511]


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("  two\n\n lines\tand\u00a0blanks ", "two lines and blanks"),
        ("Case Stays, A &amp;lt; B", "Case Stays, A < B"),
        ("fran\u00c3\u00a7ais", "fran\u00e7ais"),
        ("\u201ccurly\u201d quotes", '"curly" quotes'),
        ("", ""),
    ],
)
def test_cleaning(raw, cleaned):
    assert text.clean(raw) == cleaned


def test_other_files_are_named(models, tmp_path):
    path = tmp_path / "file.safetensors"
    write_weights(path, tiny.vae_tensors(0))
    with pytest.raises(WeightsError, match="VAE"):
        load(path)
    weights = {name: value for name, value in models[0].items() if name != "blocks.1.attn.q.weight"}
    write_weights(path, weights)
    with pytest.raises(WeightsError, match="blocks?.1"):
        load(path, tokenizer=str(models[2] / tiny.TOKENIZER_NAME))


def test_another_models_tokenizer_is_refused(models):
    rows = models[0]["token_embedding.weight"].shape[0] * 3
    path = models[2] / "big" / "t5.safetensors"
    write_weights(path, tiny.text_tensors(0, rows=rows))
    with pytest.raises(WeightsError, match=f"for a token table of {rows} rows"):
        load(path, tokenizer=str(models[2] / tiny.TOKENIZER_NAME))


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = "import sys, engine.families.wan.text, engine.families.wan.clip; print([m for m in sys.modules if m in "
    code += "('transformers', 'sentencepiece', 'tokenizers', 'ftfy', 'huggingface_hub')])"
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
