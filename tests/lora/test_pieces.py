"""Cutting and joining adapters changes no number, whatever the kind; LoRAs of other tools with parts of our layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.contract.errors import WeightsError
from engine.families.hunyuan_video import keys
from engine.lora.files import read_lora
from engine.lora.names import LoraTarget
from engine.lora.pieces import Assembled, cut, joined
from engine.lora.weights import LohaWeights, LokrWeights, LoraWeights

OUT, IN = 12, 6


def adapter(kind: str, out: int = OUT, seed: int = 0, **more):
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    if kind == "LoRA":
        return LoraWeights(draw(2, IN), draw(out, 2), more.pop("alpha", 1.0), **more)
    if kind == "LoHa":
        return LohaWeights(draw(out, 2), draw(2, IN), draw(out, 2), draw(2, IN), 1.0, **more)
    return LokrWeights(draw(3, 2), None, 1.0, w2_a=draw(out // 3, 1), w2_b=draw(1, IN // 2), **more)


@pytest.mark.parametrize("kind", ["LoRA", "LoHa", "LoKr"])
@pytest.mark.parametrize(("start", "stop"), [(0, 4), (4, 12), (1, 7)])
def test_rows_are_the_rows_of_the_change(kind: str, start: int, stop: int) -> None:
    whole = adapter(kind)
    part = cut(whole, start, stop)
    assert torch.allclose(part.change(), whole.change()[start:stop], atol=1e-6)
    assert part.out_features == stop - start
    assert part.kind == ("assembled" if kind == "LoKr" and (start, stop) == (1, 7) else kind)
    assert part.squared_norm() == pytest.approx(float(whole.change()[start:stop].square().sum()), rel=1e-5)


@pytest.mark.parametrize("kinds", [("LoRA", "LoRA", None), ("LoRA", "LoHa", "LoKr"), (None, "LoKr", None)])
def test_joined_layers_change_as_their_parts(kinds) -> None:
    parts = [(None if kind is None else adapter(kind, seed=number), OUT) for number, kind in enumerate(kinds)]
    wanted = torch.cat([torch.zeros(OUT, IN) if one is None else one.change() for one, _ in parts])
    assert torch.allclose(joined(parts).change(), wanted, atol=1e-5)
    assert torch.allclose(joined(parts).as_lora().change(), wanted, atol=1e-4)


def test_parts_with_one_down_half_keep_their_rank() -> None:
    whole = adapter("LoRA")
    again = joined([(cut(whole, 0, 4), 4), (cut(whole, 4, 8), 4), (cut(whole, 8, 12), 4)])
    assert isinstance(again, LoraWeights) and again.rank == whole.rank and again.alpha == whole.alpha
    assert torch.equal(again.up, whole.up)


def test_ranks_and_alphas_may_differ() -> None:
    parts = [(adapter("LoRA", alpha=4.0), OUT), (adapter("LoRA", seed=1, alpha=0.5), OUT)]
    found = joined(parts)
    assert isinstance(found, LoraWeights) and found.rank == 4 and found.scale == 1.0
    assert torch.allclose(found.change(), torch.cat([one.change() for one, _ in parts]), atol=1e-5)


def test_dora_is_cut_by_rows_and_joined_only_whole() -> None:
    lengths = torch.arange(1.0, OUT + 1).unsqueeze(1)
    whole = adapter("LoRA", dora=lengths)
    assert cut(whole, 3, 5).dora.flatten().tolist() == [4.0, 5.0]
    again = joined([(cut(whole, 0, 6), 6), (cut(whole, 6, 12), 6)])
    assert torch.equal(again.dora, lengths)
    with pytest.raises(WeightsError, match="cannot be joined"):
        joined([(whole, OUT), (None, OUT)])
    with pytest.raises(WeightsError, match="lengths of columns"):
        cut(adapter("LoRA", dora=torch.ones(1, IN)), 0, 4)


def test_what_is_assembled_has_no_file_format() -> None:
    with pytest.raises(WeightsError, match="A LoKr was cut or joined"):
        Assembled(((adapter("LoKr"), 1, 7),)).tensors()


# ------------------------------------------------------------------------------------- HunyuanVideo from diffusers

WIDTH, HIDDEN = 6, 20
TARGET = LoraTarget(
    {
        "double_blocks.0.img_attn_qkv": (3 * WIDTH, WIDTH),
        "double_blocks.0.img_attn_proj": (WIDTH, WIDTH),
        "single_blocks.1.linear1": (3 * WIDTH + HIDDEN, WIDTH),
    },
    rename=keys.dit_name,
    diffusers_parts=keys.diffusers_parts,
    lora_pieces=keys.lora_pieces,
)


def pair(name: str, rows: int, seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {f"{name}.lora_A.weight": torch.randn(2, WIDTH), f"{name}.lora_B.weight": torch.randn(rows, 2)}


def product(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    down, up = tensors.values()
    return up @ down


@pytest.mark.parametrize("prefix", ["transformer.", "base_model.model.", ""])
def test_separate_query_key_value_become_our_matrix(tmp_path: Path, prefix: str) -> None:
    parts = {
        name: pair(f"{prefix}transformer_blocks.0.attn.{name}", WIDTH, number)
        for number, name in enumerate(("to_v", "to_q", "to_k"))
    }
    save_file({key: value for one in parts.values() for key, value in one.items()}, tmp_path / "a.safetensors")
    found = read_lora(tmp_path / "a.safetensors", TARGET)
    assert list(found.modules) == ["double_blocks.0.img_attn_qkv"] and found.unmatched == ()
    wanted = torch.cat([product(parts[name]) for name in ("to_q", "to_k", "to_v")])
    assert torch.allclose(found.modules["double_blocks.0.img_attn_qkv"].change(), wanted, atol=1e-5)


@pytest.mark.parametrize("present", [["attn.to_q", "attn.to_v"], ["proj_mlp"], ["attn.to_k", "proj_mlp"]])
def test_missing_parts_do_not_change(tmp_path: Path, present: list[str]) -> None:
    """Style LoRAs often train to_q and to_v alone."""
    rows = {"attn.to_q": (0, WIDTH), "attn.to_k": (WIDTH, WIDTH), "attn.to_v": (2 * WIDTH, WIDTH)}
    rows["proj_mlp"] = (3 * WIDTH, HIDDEN)
    tensors, wanted = {}, torch.zeros(3 * WIDTH + HIDDEN, WIDTH)
    for number, name in enumerate(present):
        start, count = rows[name]
        one = pair(f"transformer.single_transformer_blocks.1.{name}", count, number)
        tensors |= one
        wanted[start : start + count] = product(one)
    save_file(tensors, tmp_path / "a.safetensors")
    found = read_lora(tmp_path / "a.safetensors", TARGET).modules["single_blocks.1.linear1"]
    assert torch.allclose(found.change(), wanted, atol=1e-5)


def test_another_size_of_model_is_refused(tmp_path: Path) -> None:
    save_file(pair("transformer.transformer_blocks.0.attn.to_q", 3 * WIDTH + 1, 0), tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="meant for double_blocks.0.img_attn_qkv"):
        read_lora(tmp_path / "a.safetensors", TARGET)


def test_alpha_is_found_where_peft_and_diffusers_put_it(tmp_path: Path) -> None:
    name = "transformer_blocks.0.attn.to_out.0"
    path = "double_blocks.0.img_attn_proj"
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(pair(f"base_model.model.{name}", WIDTH, 0), folder / "adapter_model.safetensors")
    for settings, scale in (
        ({"lora_alpha": 8, "r": 2}, 4.0),
        ({"lora_alpha": 8, "r": 2, "use_rslora": True}, 8 / 2**0.5),
        ({"lora_alpha": 8, "r": 2, "alpha_pattern": {"to_out.0": 1}}, 0.5),
        ({"lora_alpha": 8, "r": 2, "alpha_pattern": {r".*attn\.to_q": 1}}, 4.0),
        ({}, 1.0),
    ):
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        assert read_lora(folder, TARGET).modules[path].scale == pytest.approx(scale)
    told = json.dumps({"transformer.lora_alpha": 4, "transformer.r": 2, "text_encoder.lora_alpha": 7})
    save_file(
        pair(f"transformer.{name}", WIDTH, 0), tmp_path / "pytorch_lora_weights.safetensors",
        metadata={"lora_adapter_metadata": told},
    )  # fmt: skip
    assert read_lora(tmp_path / "pytorch_lora_weights.safetensors", TARGET).modules[path].scale == 2.0
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"adapter_config\.json"):
        read_lora(folder, TARGET)
    with pytest.raises(WeightsError, match="no LoRA file"):
        read_lora(tmp_path / "empty" if (tmp_path / "empty").mkdir() is None else tmp_path, TARGET)


def test_folded_alpha_is_not_counted_again(tmp_path: Path) -> None:
    """convert_lora folds alpha and keeps ss_network_alpha in the metadata, which says nothing about the file then."""
    tensors = pair("diffusion_model.double_blocks.0.img_attn_proj", WIDTH, 0)
    save_file(tensors, tmp_path / "a.safetensors", metadata={"ss_network_alpha": "1", "ss_network_dim": "2"})
    found = read_lora(tmp_path / "a.safetensors", TARGET).modules["double_blocks.0.img_attn_proj"]
    assert found.scale == 1.0 and torch.allclose(found.change(), product(tensors), atol=1e-6)


def test_peft_dora_is_read(tmp_path: Path) -> None:
    name = "base_model.model.transformer_blocks.0.attn.to_out.0"
    tensors = pair(name, WIDTH, 0) | {f"{name}.lora_magnitude_vector": torch.arange(1.0, WIDTH + 1)}
    save_file(tensors, tmp_path / "a.safetensors")
    found = read_lora(tmp_path / "a.safetensors", TARGET).modules["double_blocks.0.img_attn_proj"]
    assert found.dora.shape == (WIDTH, 1)
