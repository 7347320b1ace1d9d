"""LLaVA-LLaMA-3: transformers' hidden state -3 through every layout, the template's crop, and the number formats."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.contract.errors import WeightsError
from engine.parts import llama_text as llama
from engine.parts import tiny_encoders as tiny
from engine.parts.tokenizers import LLAMA3, from_json
from engine.parts.weights import open_weights, write_weights

CAPTIONS = ["a red circle moves right", "", "Two dogs & <b>a cat</b>\n\nrun; 日本語 🐈", "x" * 40]
METADATA = {"head_dim": "32"}


@pytest.fixture(scope="module")
def tokenizer_json() -> str:
    return tiny.llama_tokenizer()


@pytest.fixture(scope="module")
def tokenizer(tokenizer_json):
    return from_json(tokenizer_json, source="test", kind=LLAMA3)


@pytest.fixture(scope="module")
def weights(tokenizer) -> dict[str, torch.Tensor]:
    """ComfyUI's names, float16."""
    return {name: value.half() for name, value in tiny.llama_tensors(1, rows=tokenizer.size + 8, width=64).items()}


@pytest.fixture(scope="module")
def reference(weights, tokenizer):
    """Transformers' whole model on these weights, asked as the reference tools ask it: padded to 256, with a mask."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=tokenizer.size + 8, hidden_size=64, intermediate_size=128, num_hidden_layers=4, head_dim=32,
        num_attention_heads=2, num_key_value_heads=1, rms_norm_eps=1e-5, attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0}, max_position_embeddings=8192,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict({name: value.float() for name, value in weights.items()})

    def states(captions, *, system_prompt=None):
        before, after = llama.template(system_prompt)
        crop = len(tokenizer.ids(before))
        found = []
        for caption in captions:
            row = tokenizer.ids(before + caption + after)[: crop + 256]
            ids, mask = torch.zeros(1, crop + 256, dtype=torch.long), torch.zeros(1, crop + 256, dtype=torch.long)
            ids[0, : len(row)], mask[0, : len(row)] = torch.tensor(row), 1
            with torch.no_grad():
                hidden = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
            assert len(hidden) == 5
            found.append(hidden[-3][0, crop : len(row)])
        return found

    return states


@pytest.fixture
def tokenizer_folder(tokenizer_json, tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    return folder


def load(path, **other):
    file = open_weights(path, role="--text_encoder1")
    return llama.load(file, device="cpu", **{"dtype": torch.float32, **other})


def equal(found, wanted, limit=1e-5):
    assert [tuple(one.shape) for one in found] == [tuple(one.shape) for one in wanted]
    assert max((one.float() - other).abs().max() for one, other in zip(found, wanted, strict=True)) <= limit


def blob(tokenizer_json):
    return torch.frombuffer(bytearray(tokenizer_json.encode()), dtype=torch.uint8)


@pytest.fixture
def comfy(weights, tokenizer_json, tmp_path):
    path = tmp_path / "comfy" / "llava_llama3_fp16.safetensors"
    write_weights(path, {**weights, "tokenizer": blob(tokenizer_json)}, metadata=METADATA)
    return path


def test_comfyui_file_with_its_tokenizer(comfy, reference):
    encoder = load(comfy)
    assert "embedded" in encoder.tokenizer.source
    equal(llama.encode(encoder, CAPTIONS), reference(CAPTIONS))


def test_shards_without_prefix(weights, reference, tokenizer_folder, tmp_path):
    """hunyuanvideo-community's text_encoder folder: LlamaModel's names, no head, the tokenizer in the next folder."""
    bare = {name.removeprefix("model."): value for name, value in weights.items() if not name.startswith("lm_head")}
    folder = tmp_path / "text_encoder"
    places = {}
    for number in (1, 2):
        name = f"model-{number:05d}-of-00002.safetensors"
        part = dict(list(bare.items())[number - 1 :: 2])
        write_weights(folder / name, part, metadata=METADATA)
        places |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    for path in (folder, folder / "model-00001-of-00002.safetensors"):
        encoder = load(path)
        assert encoder.tokenizer.source == str(tokenizer_folder / "tokenizer.json")
        equal(llama.encode(encoder, CAPTIONS), reference(CAPTIONS))


@pytest.mark.parametrize("prefix", ["language_model.", "text_encoders.llama.transformer.", "module."])
def test_other_prefixes_and_a_whole_llava(weights, reference, tokenizer_folder, tmp_path, prefix):
    tensors = {f"{prefix}{name}": value for name, value in weights.items()}
    tensors |= {"vision_tower.x.weight": torch.ones(1), "multi_modal_projector.linear_1.bias": torch.ones(1)}
    write_weights(tmp_path / "model.safetensors", tensors, metadata=METADATA)
    equal(llama.encode(load(tmp_path / "model.safetensors"), CAPTIONS), reference(CAPTIONS))


def test_what_is_not_needed_is_not_loaded(comfy):
    """The last two blocks, the final norm and the head do not reach hidden state -3."""
    model = load(comfy).model
    names = dict(model.named_parameters())
    assert len(model.layers) == 2 and not any(name.startswith(("norm", "lm_head", "layers.2")) for name in names)
    assert all(value.dtype == torch.float32 and value.device.type == "cpu" for value in names.values())
    assert model.rotary_emb.inv_freq.device.type == "cpu"


def test_a_batch_gives_what_its_captions_give_alone(comfy):
    encoder = load(comfy)
    equal(llama.encode(encoder, CAPTIONS), [llama.encode(encoder, [caption])[0] for caption in CAPTIONS])
    assert llama.encode(encoder, []) == []


def test_an_empty_caption_has_one_token_and_a_long_one_256(comfy):
    encoder = load(comfy)
    one, full = llama.encode(encoder, ["", "circle " * 500])
    assert one.shape == (1, 64) and full.shape == (256, 64)
    assert one.untyped_storage().nbytes() == one.numel() * 4


def test_a_caption_that_loses_no_more_than_the_closing_token_is_read_to_its_end(comfy):
    """Also behind another prompt, which is none of the caption."""
    tokenizer = load(comfy).tokenizer
    letters = [caption for count in range(600) if (caption := "x" * count)]
    counts = llama.token_counts(tokenizer, letters, system_prompt="Say what moves.")
    assert counts == llama.token_counts(tokenizer, letters)
    rows, crop = llama.token_rows(tokenizer, letters)
    closing = tokenizer.split("<|eot_id|>")
    for count, row in zip(counts, rows, strict=True):
        assert count.read == len(row) - crop - (row[-1:] == closing) and count.tokens >= count.read
    assert {(one.tokens, one.read) for one in counts} >= {(255, 255), (256, 256), (257, 256)}


def test_the_published_prompt_is_exact():
    """Five items that follow each other without a blank: with one more anywhere the crop of 95 tokens would be off."""
    before, after = llama.template()
    assert before.startswith("<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing")
    assert before.endswith("transitions used in the video:<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n")
    assert after == "<|eot_id|>" and len(llama.VIDEO_SYSTEM_PROMPT) == 404
    for number in range(2, 6):
        assert f".{number}. " in before
    assert llama.VIDEO_CROP_TOKENS == 95


def test_the_crop_is_counted_with_the_tokenizer_and_the_prompt(comfy, reference):
    """--custom_system_prompt counts its own crop: the states are the caption's, not the prompt's end."""
    encoder = load(comfy)
    for prompt in ("Say what moves.", "", "Describe the video. " * 20):
        rows, crop = llama.token_rows(encoder.tokenizer, ["a red circle"], system_prompt=prompt)
        assert crop == len(encoder.tokenizer.ids(llama.template(prompt)[0]))
        assert rows[0][crop:] == [*encoder.tokenizer.split("a red circle"), encoder.tokenizer.split("<|eot_id|>")[0]]
        equal(llama.encode(encoder, CAPTIONS, system_prompt=prompt), reference(CAPTIONS, system_prompt=prompt))


def test_rows_are_those_of_transformers_tokenizer(tokenizer, tokenizer_folder):
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_folder / "tokenizer.json"))
    rows, _ = llama.token_rows(tokenizer, CAPTIONS)
    before, after = llama.template()
    assert rows == [theirs(before + caption + after).input_ids for caption in CAPTIONS]
    assert rows[0][0] == tokenizer.start_id and rows[0].count(tokenizer.start_id) == 1


def test_fp8_llm_is_close_and_small(comfy, reference):
    """Plain casts of every weight (musubi-tuner's --fp8_llm) lose small ones; scaled rows do not."""
    encoder = load(comfy, fp8=True)
    wanted = torch.cat(reference(CAPTIONS))
    assert (torch.cat(llama.encode(encoder, CAPTIONS)) - wanted).norm() / wanted.norm() < 0.1
    assert sum(type(layer).__name__ == "StoredFp8Linear" for layer in encoder.model.modules()) == 2 * 7
    assert encoder.model.embed_tokens.weight.dtype == torch.float32


def test_scaled_fp8_file(weights, tokenizer_json, tokenizer_folder, tmp_path):
    """ComfyUI's llava_llama3_fp8_scaled: codes, a scale a layer, a marker."""
    tensors = {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn), "tokenizer": blob(tokenizer_json)}
    meant = {}
    for name, value in weights.items():
        if "_proj" in name:
            scale = value.float().abs().max() / 448
            tensors[name] = (value.float() / scale).to(torch.float8_e4m3fn)
            tensors[name.removesuffix("weight") + "scale_weight"] = scale
            meant[name] = tensors[name].float() * scale
        else:
            tensors[name] = meant[name] = value
    write_weights(tmp_path / "scaled.safetensors", tensors, metadata=METADATA)
    write_weights(tmp_path / "meant.safetensors", meant, metadata=METADATA)
    wanted = llama.encode(load(tmp_path / "meant.safetensors"), CAPTIONS)
    equal(llama.encode(load(tmp_path / "scaled.safetensors", fp8=True), CAPTIONS), wanted)
    read = torch.cat(llama.encode(load(tmp_path / "scaled.safetensors"), CAPTIONS)) - torch.cat(wanted)
    assert read.norm() / torch.cat(wanted).norm() < 0.02  # multiplied out to bf16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_number_formats(comfy, reference, dtype):
    wanted = torch.cat(reference(CAPTIONS))
    for fp8 in (False, True):
        states = llama.encode(load(comfy, dtype=dtype, fp8=fp8), CAPTIONS)
        assert all(one.dtype == dtype for one in states)
        assert (torch.cat(states).float() - wanted).norm() / wanted.norm() < 0.1


def test_a_blob_of_another_kind_is_passed_over(weights, tokenizer_folder, tmp_path):
    tensors = {**weights, "tokenizer": torch.arange(9, dtype=torch.uint8)}
    write_weights(tmp_path / "model.safetensors", tensors, metadata=METADATA)
    assert load(tmp_path / "model.safetensors").tokenizer.source == str(tokenizer_folder / "tokenizer.json")


def test_the_flag_for_the_tokenizer(weights, tokenizer_folder, tmp_path):
    write_weights(tmp_path / "lone" / "deep" / "model.safetensors", weights, metadata=METADATA)
    path = tmp_path / "lone" / "deep" / "model.safetensors"
    assert load(path, tokenizer=str(tokenizer_folder)).tokenizer.source == str(tokenizer_folder / "tokenizer.json")
    with pytest.raises(WeightsError, match="No file") as caught:
        load(path, tokenizer=str(tmp_path / "absent"), tokenizer_flag="--tokenizer1")
    assert "--tokenizer1 a tokenizer.json" in caught.value.hint


def test_files_that_do_not_fit(weights, tokenizer_folder, tmp_path):
    path = tmp_path / "model.safetensors"
    for absent, words in (
        ("model.embed_tokens.weight", "lacks embed_tokens.weight"),
        ("model.layers.0.self_attn.q_proj.weight", "lacks layers.0.self_attn.q_proj.weight"),
        ("model.layers.1.mlp.up_proj.weight", "layers.1.mlp.up_proj.weight"),
    ):
        write_weights(path, {n: v for n, v in weights.items() if n != absent}, metadata=METADATA)
        with pytest.raises(WeightsError, match=words):
            load(path)
    write_weights(path, weights)
    with pytest.raises(WeightsError, match="64 and 32 are not multiples of the head size 128"):
        load(path)
    write_weights(path, {n: v for n, v in weights.items() if "layers." not in n or ".0." in n}, metadata=METADATA)
    with pytest.raises(WeightsError, match="has 1 blocks; at least 3"):
        load(path)


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = (
        "import sys, engine.parts.llama_text, engine.parts.clip_text, engine.parts.siglip, engine.parts.tiny_encoders"
    )
    code += "; print([m for m in sys.modules if m in ('transformers', 'tokenizers', 'ftfy', 'PIL', 'huggingface_hub')])"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
