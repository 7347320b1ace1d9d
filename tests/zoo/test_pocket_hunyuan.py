"""Pocket HunyuanVideo's networks are the engine's: what is trained here is what the engine computes, and loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.families.hunyuan_video import detect, model, text
from engine.parts import clip_text, llama_text
from engine.parts.hunyuan_vae_public import public_shapes
from engine.parts.weights import open_weights
from zoo import data, pocket_hunyuan, pocket_wan, scenes, train_dit, train_hunyuan
from zoo.masked_hunyuan import MaskedHunyuan

SMALL = pocket_hunyuan.SMALL
CAPTIONS = ["a red circle moves left", "a video of a large spotted blue star that spins slowly on a dark sky", ""]


@pytest.fixture(scope="module")
def drawn() -> data.Tokenizer:
    return data.own_tokenizer()[1]


def lively(pocket: train_hunyuan.HunyuanPocket) -> train_hunyuan.HunyuanPocket:
    """Untrained, with nothing left at zero or one."""
    for weight in pocket.parameters():
        torch.nn.init.normal_(weight, mean=1.0 if weight.ndim == 1 else 0.0, std=0.15)
        weight.data = weight.data.bfloat16().float()  # as files have it
    return pocket


def ids_of(drawn: data.Tokenizer, captions: list[str]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(data.padded_ids(drawn, caption)) for caption in captions]).long()


def write_all(pocket: train_hunyuan.HunyuanPocket, folder: Path) -> dict[str, Path]:
    paths = {
        "dit": folder / pocket_hunyuan.DIT_NAME,
        "text_encoder1": folder / pocket_hunyuan.LLAMA_NAME,
        "text_encoder2": folder / pocket_hunyuan.CLIP_NAME,
    }
    pocket_hunyuan.write_dit(paths["dit"], pocket.dit.state_dict(), head_dim=pocket.dit.config.head_dim)
    pocket_hunyuan.write_llama(paths["text_encoder1"], dict(pocket.text.llama.named_parameters()), sizes=SMALL.text)
    pocket_hunyuan.write_clip(paths["text_encoder2"], dict(pocket.text.clip.named_parameters()), sizes=SMALL.text)
    return paths


def test_masked_padding_is_padding() -> None:
    trained = lively(train_hunyuan.HunyuanPocket(pocket_hunyuan.new_dit(SMALL.dit), torch.nn.Module())).dit
    plain = model.HunyuanVideoModel(SMALL.dit)
    plain.load_state_dict(trained.state_dict())
    lengths, width = (3, 11), SMALL.text.llama_width
    text_BLD = torch.randn(2, 14, width)
    mask_BL = torch.arange(14) < torch.tensor(lengths)[:, None]
    x_BCTHW, timestep_B = torch.randn(2, 16, 3, 4, 4), torch.tensor([500.0, 20.0])
    given = {"pooled_BD": torch.randn(2, SMALL.text.clip_width), "guidance_B": torch.tensor([1000.0, 4000.0])}
    with torch.no_grad():
        masked = trained(x_BCTHW, timestep_B, text_BLD, mask_BL, **given)
        cut = plain(x_BCTHW, timestep_B, [row[:length] for row, length in zip(text_BLD, lengths, strict=True)], **given)
        whole = plain(x_BCTHW, timestep_B, list(text_BLD), **given)
    torch.testing.assert_close(masked, cut, rtol=1e-5, atol=1e-5 * float(cut.abs().max()))
    assert (whole - cut).abs().max() > 1e-2 * cut.abs().max(), "the padding plays no part, so this proves nothing"


def test_text_is_what_the_engine_makes_of_the_same_captions(tmp_path: Path, drawn: data.Tokenizer) -> None:
    pocket = lively(train_hunyuan.new_pocket(SMALL, drawn))
    paths = write_all(pocket, tmp_path)
    encoder = text.load(
        {name: str(path) for name, path in paths.items() if name != "dit"}, device="cpu", dtype="float32"
    )
    captions = [*CAPTIONS, *(scenes.caption(scenes.random_scene(n, split="train"), seed=n) for n in range(40))]
    ids_BL = ids_of(drawn, captions)
    rows, before = llama_text.token_rows(encoder.llama.tokenizer, captions)
    assert before == pocket.text.words.before == 2, "the template is one token behind the start"
    for row, ids in zip(rows, pocket.text.words.llama(ids_BL).tolist(), strict=True):
        assert ids[: len(row)] == row
    clip_rows = clip_text.token_rows(encoder.clip, captions)
    for row, ids in zip(clip_rows, pocket.text.words.clip(ids_BL).tolist(), strict=True):
        assert ids[: len(row)] == row
    with torch.no_grad():
        states_BLD, mask_BL, pooled_BD = pocket.text(ids_BL)
    encoded = text.encode(encoder, captions)
    for found, states, mask, pooled in zip(encoded, states_BLD, mask_BL, pooled_BD, strict=True):
        assert int(found["llm_mask"].sum()) == int(mask.sum())
        torch.testing.assert_close(found["llm"][: len(states)][mask], states[mask], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found["clipL"], pooled, rtol=1e-4, atol=1e-4)


def test_words_of_captions_are_one_token_each_and_others_are_spelled(drawn: data.Tokenizer) -> None:
    llama = train_hunyuan.new_text(SMALL, drawn).words
    assert llama.sizes[0] <= pocket_hunyuan.ROWS and llama.sizes[0] > pocket_hunyuan.ROWS // 2
    assert llama.sizes[1] <= pocket_hunyuan.ROWS and llama.sizes[1] > pocket_hunyuan.ROWS // 2
    from engine.parts.tokenizers import LLAMA3, from_json
    from zoo.hunyuan_words import llama_tokenizer

    tokenizer = from_json(llama_tokenizer(), source="test", kind=LLAMA3)
    assert [word for word in scenes.VOCABULARY if len(tokenizer.split(word)) != 1] == []
    assert len(tokenizer.split("sks")) == 3 and len(set(tokenizer.split("色"))) == 1
    assert tokenizer.split("A red star") == tokenizer.split("a red star")


def test_files_are_recognised_and_load(tmp_path: Path, drawn: data.Tokenizer) -> None:
    paths = write_all(train_hunyuan.new_pocket(SMALL, drawn), tmp_path)
    roles = [detect.role_of(open_weights(path, role="--dit").shapes) for path in paths.values()]
    assert roles == ["dit", "text-encoder", "clip-text-encoder"]
    file = open_weights(paths["dit"], role="--dit")
    variant = detect.detect(file.shapes, file.metadata)
    assert (variant.name, variant.config) == ("t2v", SMALL.dit)
    assert isinstance(pocket_hunyuan.read_dit(paths["dit"]), MaskedHunyuan)
    assert pocket_hunyuan.read_llama(paths["text_encoder1"]).config.num_hidden_layers == SMALL.text.llama_blocks
    assert pocket_hunyuan.read_clip(paths["text_encoder2"]).config.hidden_size == SMALL.text.clip_width


def test_everything_learns(drawn: data.Tokenizer) -> None:
    pocket = lively(train_hunyuan.new_pocket(SMALL, drawn))
    examples = train_dit.Examples(torch.randn(1, 16, 2, 4, 4), ids_of(drawn, CAPTIONS[:2])[None])
    recipe = train_dit.Recipe(batch=2, dropped=0.0)
    train_dit.loss(pocket, examples, train_hunyuan.without_caption(drawn), recipe).backward()
    idle = [name for name, weight in pocket.named_parameters() if weight.grad is None or not weight.grad.any()]
    # a bias of all keys changes no attention
    assert [name for name in idle if not name.endswith("k_proj.bias")] == []


def test_published_sizes_fit() -> None:
    sizes = pocket_hunyuan.POCKET
    dit = {name: tuple(weight.shape) for name, weight in MaskedHunyuan(sizes.dit).state_dict().items()}
    texts = (pocket_hunyuan.llama_shapes(sizes.text), pocket_hunyuan.clip_shapes(sizes.text))
    found = [pocket_wan.megabytes(shapes) for shapes in (public_shapes(sizes.vae_widths), dit, *texts)]
    assert [round(size, 2) for size in found] == [7.01, 7.98, 0.86, 0.13]
