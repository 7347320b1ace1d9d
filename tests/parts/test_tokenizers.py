"""Tokenizers: both file kinds agree, and the search finds them without a network, in its order."""

from __future__ import annotations

import shutil

import pytest
import sentencepiece
import tokenizers as library

from engine.contract.errors import WeightsError
from engine.families.wan.tiny import train_tokenizer
from engine.parts import tiny_encoders, tokenizers
from engine.parts.tokenizers import (
    CLIP,
    LLAMA3,
    HubFolder,
    Places,
    find_tokenizer,
    from_json,
    from_sentencepiece,
    open_tokenizer,
)

TEXTS = ["a red circle moves right", "Ünknown 日本語 🐈 letters", "", "x", "a  b", "the quick brown fox, 4k!"]
PLACES = Places(
    beside=("google/umt5-xxl", "."), comfyui=("models/te",), hub=(HubFolder("Some/Model", "google/umt5-xxl"),)
)


@pytest.fixture(scope="module")
def model() -> bytes:
    return train_tokenizer()


@pytest.fixture
def spiece(model, tmp_path):
    path = tmp_path / "given" / "spiece.model"
    path.parent.mkdir()
    path.write_bytes(model)
    return path


@pytest.fixture
def rows(model):
    return from_sentencepiece(model, source="test").size + 12


@pytest.fixture(autouse=True)
def empty_home(tmp_path, monkeypatch):
    """No ComfyUI, an empty hub cache, and a hub that cannot be reached."""
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def refuse(repository, name):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    return tmp_path


def as_json(model: bytes, path) -> None:
    """The same unigram model as a tokenizer.json, built from its pieces."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [(processor.IdToPiece(i), processor.GetScore(i)) for i in range(processor.GetPieceSize())]
    made = library.Tokenizer(library.models.Unigram(pieces, unk_id=2, byte_fallback=True))
    made.normalizer = library.normalizers.Sequence(
        [library.normalizers.NFKC(), library.normalizers.Replace(library.Regex(" {2,}"), " ")]
    )
    made.pre_tokenizer = library.pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    made.post_processor = library.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.save(str(path))


def test_both_kinds_give_the_same_ids(model, tmp_path):
    as_json(model, tmp_path / "tokenizer.json")
    ours, theirs = from_sentencepiece(model, source="test"), open_tokenizer(tmp_path / "tokenizer.json")
    assert (ours.size, ours.end_id, ours.pad_id) == (theirs.size, theirs.end_id, theirs.pad_id)
    assert (ours.end_id, ours.pad_id) == (1, 0)
    for text in TEXTS:
        assert ours.ids(text, limit=512) == theirs.ids(text, limit=512), text
        assert ours.ids(text, limit=4) == theirs.ids(text, limit=4)


def test_every_text_ends_with_the_end_token_within_the_limit(model):
    tokenizer = from_sentencepiece(model, source="test")
    assert tokenizer.ids("", limit=512) == [1]
    cut = tokenizer.ids("circle " * 900, limit=512)
    assert len(cut) == 512 and cut[-1] == 1 and 1 not in cut[:-1]
    assert tokenizer.ids("circle", limit=1) == [1]


def test_explicit_path_wins_over_everything(spiece, model, rows, tmp_path):
    beside = tmp_path / "weights" / "google" / "umt5-xxl"
    beside.mkdir(parents=True)
    shutil.copy(spiece, beside)
    for given in (spiece, spiece.parent, str(spiece)):
        weights = tmp_path / "weights" / "t5.pth"
        found = find_tokenizer(PLACES, rows=rows, explicit=given, embedded=model, weights=weights)
        assert found.source == str(spiece)


def test_embedded_wins_over_files(spiece, model, rows):
    found = find_tokenizer(PLACES, rows=rows, embedded=model, weights=spiece.parent / "t5.safetensors")
    assert "t5.safetensors (embedded)" in found.source


@pytest.mark.parametrize("place", [".", "google/umt5-xxl"])
@pytest.mark.parametrize("weights", ["t5.pth", ""])
def test_beside_the_weights(model, rows, tmp_path, place, weights):
    """Beside a file, and inside a folder of shards."""
    folder = tmp_path / "weights" / place
    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes(model)
    found = find_tokenizer(PLACES, rows=rows, weights=tmp_path / "weights" / weights)
    assert found.source == str(folder.resolve() / "spiece.model")


def test_comfyui_checkout(model, rows, tmp_path, monkeypatch):
    folder = tmp_path / "ComfyUI" / "models" / "te"
    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes(model)
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "ComfyUI"))
    assert find_tokenizer(PLACES, rows=rows).source.endswith("te/spiece.model")


def test_local_hub_cache_is_used_without_a_network(model, rows, tmp_path):
    snapshot = tmp_path / "hub" / "models--Some--Model" / "snapshots" / "0123"
    folder = snapshot / "google" / "umt5-xxl"
    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes(model)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123")
    assert find_tokenizer(PLACES, rows=rows).source == str(folder / "spiece.model")


def test_the_hub_is_the_last_resort(spiece, rows, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda repository, name: asked.append((repository, name)) or str(spiece)
    )
    assert find_tokenizer(PLACES, rows=rows).source == str(spiece)
    assert asked == [("Some/Model", "google/umt5-xxl/spiece.model")]
    with pytest.raises(WeightsError):
        find_tokenizer(PLACES, rows=rows, allow_download=False)


def test_nothing_found_names_every_place(rows, tmp_path):
    with pytest.raises(WeightsError, match="No tokenizer") as caught:
        find_tokenizer(PLACES, rows=rows, weights=tmp_path / "t5.pth")
    for place in ("--tokenizer", str(tmp_path), "COMFYUI_PATH", "Some/Model", "no network"):
        assert place in caught.value.hint


def test_another_models_tokenizer_is_passed_over_beside_and_refused_when_given(model, rows, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "spiece.model").write_bytes(model)
    for wrong in (rows * 3, rows // 2):
        with pytest.raises(WeightsError, match="No tokenizer") as caught:
            find_tokenizer(PLACES, rows=wrong, weights=tmp_path / "weights" / "t5.pth")
        assert f"token table of {wrong} rows" in caught.value.hint
        with pytest.raises(WeightsError, match="belongs to another text encoder"):
            find_tokenizer(PLACES, rows=wrong, explicit=tmp_path / "weights")


def test_broken_files(tmp_path):
    for name, content in (("spiece.model", b"not a model"), ("tokenizer.json", b"{"), ("spiece.model", b"")):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(WeightsError):
            open_tokenizer(path)
        path.unlink()
    with pytest.raises(WeightsError, match="No file"):
        open_tokenizer(tmp_path / "absent.model")
    with pytest.raises(WeightsError, match="neither spiece.model nor tokenizer.json"):
        open_tokenizer(tmp_path)


def test_a_tokenizer_json_without_end_token_is_another_kind(tmp_path):
    library.Tokenizer(library.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(tmp_path / "t.json"))
    with pytest.raises(WeightsError, match="another kind of model"):
        open_tokenizer(tmp_path / "t.json")


def test_file_names_are_looked_for_in_one_order():
    assert tokenizers.T5.file_names == ("spiece.model", "tokenizer.json")


LLAMA_PLACES = Places(beside=("tokenizer", "."), comfyui=("comfy/text_encoders/llama_tokenizer",))
CLIP_PLACES = Places(beside=("tokenizer_2", "."), comfyui=("comfy/sd1_tokenizer",))


@pytest.fixture(scope="module")
def llama_json() -> str:
    return tiny_encoders.llama_tokenizer()


@pytest.fixture
def clip_folder(tmp_path):
    tiny_encoders.write_clip(tmp_path / "clip" / "clip_l.safetensors", seed=1)
    return tmp_path / "clip" / "tokenizer_2"


def test_start_and_end_stay_when_a_text_is_cut(llama_json, clip_folder):
    llama = from_json(llama_json, source="test", kind=LLAMA3)
    assert llama.end_id is None and llama.ids("circle " * 300, limit=9)[0] == llama.start_id
    assert llama.ids("circle " * 300, limit=9) == llama.ids("circle " * 300)[:9]
    clip = open_tokenizer(clip_folder, kind=CLIP)
    cut = clip.ids("circle " * 300, limit=77)
    assert len(cut) == 77 and (cut[0], cut[-1]) == (clip.start_id, clip.end_id) and clip.end_id not in cut[:-1]
    assert clip.ids("", limit=77) == [clip.start_id, clip.end_id]


def test_special_tokens_of_a_template_are_read_as_such(llama_json):
    llama = from_json(llama_json, source="test", kind=LLAMA3)
    assert len(llama.ids("<|start_header_id|>system<|end_header_id|>\n\n<|eot_id|>")) <= 8


@pytest.mark.parametrize("place", ["tokenizer", "."])
def test_a_llama_tokenizer_is_found_beside_embedded_and_in_comfyui(llama_json, tmp_path, monkeypatch, place):
    rows = from_json(llama_json, source="test", kind=LLAMA3).size
    weights = tmp_path / "models" / "llava.safetensors"
    found = find_tokenizer(LLAMA_PLACES, rows=rows, embedded=llama_json.encode(), weights=weights, kind=LLAMA3)
    assert "embedded" in found.source
    checkout = tmp_path / "ComfyUI" / "comfy" / "text_encoders" / "llama_tokenizer"
    for folder in (checkout, weights.parent / place):
        folder.mkdir(parents=True)
        (folder / "tokenizer.json").write_text(llama_json, encoding="utf-8")
        monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "ComfyUI"))
        assert find_tokenizer(LLAMA_PLACES, rows=rows, weights=weights, kind=LLAMA3).source == str(
            folder.resolve() / "tokenizer.json"
        )


def test_two_encoders_in_one_folder_do_not_take_each_others_tokenizer(llama_json, clip_folder):
    """LLaMA's tokenizer.json lies where CLIP's may lie too; it has other special tokens, so the search goes on."""
    rows = open_tokenizer(clip_folder, kind=CLIP).size
    home = clip_folder.parent
    (home / "tokenizer.json").write_text(llama_json, encoding="utf-8")
    places = Places(beside=(".", "tokenizer_2"))
    found = find_tokenizer(places, rows=rows, weights=home / "clip_l.safetensors", kind=CLIP)
    assert found.source == str(clip_folder.resolve() / "vocab.json")
    with pytest.raises(WeightsError, match="another kind of model") as caught:
        open_tokenizer(home / "tokenizer.json", kind=CLIP)
    assert "openai/clip-vit-large-patch14" in caught.value.hint


def test_clip_in_comfyui_checkout(clip_folder, tmp_path, monkeypatch):
    folder = tmp_path / "ComfyUI" / "comfy" / "sd1_tokenizer"
    shutil.copytree(clip_folder, folder)
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "ComfyUI"))
    rows = open_tokenizer(clip_folder, kind=CLIP).size
    assert find_tokenizer(CLIP_PLACES, rows=rows, kind=CLIP).source == str(folder / "vocab.json")


def test_a_vocabulary_needs_its_merges(clip_folder):
    (clip_folder / "merges.txt").unlink()
    with pytest.raises(WeightsError, match="needs merges.txt"):
        open_tokenizer(clip_folder, kind=CLIP)
    (clip_folder / "merges.txt").write_text("#version: 0.2\nno such pair here\n")
    with pytest.raises(WeightsError, match="not a vocabulary"):
        open_tokenizer(clip_folder / "vocab.json", kind=CLIP)


def test_messages_name_the_kinds_files_and_flag(tmp_path):
    with pytest.raises(WeightsError, match="holds no tokenizer.json") as caught:
        open_tokenizer(tmp_path, kind=LLAMA3, flag="--tokenizer1")
    assert "--tokenizer1 a tokenizer.json" in caught.value.hint
    with pytest.raises(WeightsError, match="No tokenizer") as caught:
        find_tokenizer(CLIP_PLACES, rows=9, weights=tmp_path / "x.safetensors", kind=CLIP, flag="--tokenizer2")
    assert "tokenizer.json or vocab.json of openai/clip" in caught.value.hint and "--tokenizer2" in caught.value.hint
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(WeightsError, match="not UTF-8"):
        open_tokenizer(tmp_path, kind=LLAMA3)
