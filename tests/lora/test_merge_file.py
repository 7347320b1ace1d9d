"""Merging into a checkpoint: layout, names and number formats stay; memory is one layer's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from engine.contract.errors import WeightsError
from engine.families.hunyuan_video import keys
from engine.lora.merge_file import merge_into, open_unscaled
from engine.parts.arrangement import renamed
from engine.parts.weights import open_weights

WIDTH = 4


def test_the_file_keeps_its_layout_where_ours_is_joined(tmp_path: Path) -> None:
    """diffusers' query, key and value lie apart, and the halves of its last modulation are swapped."""
    torch.manual_seed(0)
    stored = {
        "transformer_blocks.0.attn.to_q.weight": torch.randn(WIDTH, WIDTH),
        "transformer_blocks.0.attn.to_k.weight": torch.randn(WIDTH, WIDTH),
        "transformer_blocks.0.attn.to_v.weight": torch.randn(WIDTH, WIDTH),
        "norm_out.linear.weight": torch.randn(2 * WIDTH, WIDTH),
        "rope.freqs": torch.arange(3),
    }
    save_file(stored, tmp_path / "a.safetensors", metadata={"kept": "yes"})
    file = open_unscaled(tmp_path / "a.safetensors", role="--dit")
    change = torch.arange(3.0 * WIDTH).unsqueeze(1)
    swapped = torch.arange(2.0 * WIDTH).unsqueeze(1)

    def transform(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name == "double_blocks.0.img_attn_qkv.weight":
            return tensor + change
        return tensor + swapped if name == "final_layer.adaLN_modulation.1.weight" else tensor

    seen: list[int] = []
    merge_into(
        file, tmp_path / "b.safetensors", arrangement=keys.arrange(file.shapes), transform=transform,
        metadata={"merged_lora": "x"}, on_tensor=lambda: seen.append(1),
    )  # fmt: skip
    merged = load_file(tmp_path / "b.safetensors")
    assert merged.keys() == stored.keys() and len(seen) == len(stored)
    for number, letter in enumerate("qkv"):
        name = f"transformer_blocks.0.attn.to_{letter}.weight"
        assert torch.allclose(merged[name], stored[name] + change[number * WIDTH : (number + 1) * WIDTH])
    halves = torch.cat([swapped[WIDTH:], swapped[:WIDTH]])
    assert torch.allclose(merged["norm_out.linear.weight"], stored["norm_out.linear.weight"] + halves)
    assert torch.equal(merged["rope.freqs"], stored["rope.freqs"])
    with safe_open(tmp_path / "b.safetensors", "pt") as opened:
        assert opened.metadata() == {"kept": "yes", "merged_lora": "x"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_number_formats_and_prefixes_stay(tmp_path: Path, dtype: torch.dtype) -> None:
    stored = {"model.diffusion_model.a.weight": torch.ones(2, 2).to(dtype), "model.diffusion_model.b": torch.ones(2)}
    save_file(stored, tmp_path / "a.safetensors")
    file = open_unscaled(tmp_path / "a.safetensors", role="--dit")
    arrangement = renamed(file.shapes, lambda name: name.removeprefix("model.diffusion_model."))
    merge_into(
        file, tmp_path / "b.safetensors", arrangement=arrangement, metadata={},
        transform=lambda name, tensor: (tensor.float() + 1).to(tensor.dtype) if name == "a.weight" else tensor,
    )  # fmt: skip
    merged = load_file(tmp_path / "b.safetensors")
    assert merged["model.diffusion_model.a.weight"].dtype == dtype
    assert merged["model.diffusion_model.a.weight"].float().tolist() == [[2, 2], [2, 2]]


def test_shards_become_one_file_read_one_tensor_at_a_time(tmp_path: Path) -> None:
    names = [f"m-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    for number, name in enumerate(names):
        save_file({f"layer{number}.weight": torch.full((2, 2), float(number))}, tmp_path / name)
    file = open_weights(tmp_path / names[1], role="--dit")
    alive: list[int] = []
    read, held = file.read, []

    def counted(name: str, **other):
        held.append(name)
        alive.append(len(held))
        return read(name, **other)

    file.read = counted  # type: ignore[method-assign]

    def transform(name: str, tensor: torch.Tensor) -> torch.Tensor:
        held.clear()
        return tensor + 1

    merge_into(
        file, tmp_path / "b.safetensors", arrangement=renamed(file.shapes, lambda name: name), transform=transform,
        metadata={},
    )  # fmt: skip
    assert max(alive) <= 2
    assert [float(value[0, 0]) for _, value in sorted(load_file(tmp_path / "b.safetensors").items())] == [1, 2, 3]


def test_a_folder_of_shards_holds_the_same(tmp_path: Path) -> None:
    """Each no larger than asked, but for a tensor that is larger by itself; and diffusers' index beside them."""
    stored = {f"layer{number}.weight": torch.full((8, 8), float(number)) for number in range(5)}
    stored["large.weight"] = torch.ones(40, 8)
    save_file(stored, tmp_path / "a.safetensors")
    file = open_weights(tmp_path / "a.safetensors", role="--dit")
    merge_into(
        file, tmp_path / "b", arrangement=renamed(file.shapes, lambda name: name), metadata={"k": "v"},
        transform=lambda name, tensor: tensor + 1, shard_bytes=600,
    )  # fmt: skip
    merged = open_weights(tmp_path / "b", role="--dit")
    assert merged.metadata["k"] == "v" and merged.shapes.keys() == stored.keys()
    assert all(torch.equal(merged.read(name), tensor + 1) for name, tensor in stored.items())
    shards = [load_file(path) for path in sorted((tmp_path / "b").glob("*-of-00004.safetensors"))]
    sizes = [sum(tensor.nbytes for tensor in shard.values()) for shard in shards]
    assert sorted(sizes) == [256, 512, 512, 1280] and len(shards) == 4
    index = json.loads((tmp_path / "b" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes) and index["weight_map"].keys() == stored.keys()


def test_scaled_fp8_is_refused(tmp_path: Path) -> None:
    codes = torch.ones(2, 2).to(torch.float8_e4m3fn)
    save_file({"a.weight": codes, "a.scale_weight": torch.tensor(0.5)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="scaled fp8 weights"):
        open_unscaled(tmp_path / "a.safetensors", role="--dit")
