"""What is written is what others read: round trips of every format and kind, for every family."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from engine.contract.errors import WeightsError
from engine.families import part
from engine.lora.files import read_lora, write_lora
from engine.lora.formats import differences_named, named, to_default, to_diffusers, to_other
from engine.lora.names import LoraTarget
from engine.lora.network import targets
from engine.lora.weights import LohaWeights, LokrWeights, LoraWeights
from engine.tasks.lora_targets import lora_target

FAMILIES = ("wan", "hunyuan_video", "framepack")
BLOCKS = {"wan": r"blocks\.3\.", "hunyuan_video": r"(double|single)_blocks\.3\.", "framepack": r".*blocks\.3\."}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request) -> tuple[str, torch.nn.Module, LoraTarget]:
    family = request.param
    dit = part(family, "model").build(part(family, "detect").fullest())
    return family, dit, lora_target(family, dit)


def adapters(family: str, dit: torch.nn.Module, rank: int = 2) -> dict[str, LoraWeights]:
    """A LoRA of everything in the fourth blocks, the modulation included."""
    torch.manual_seed(0)
    modules = targets(dit, block_classes=part(family, "keys").LORA_BLOCKS, exclude=[rf"(?!{BLOCKS[family]}).*"])
    return {
        path: LoraWeights(torch.randn(rank, module.in_features), torch.randn(module.out_features, rank), 1.0)
        for path, module in modules.items()
    }


@pytest.mark.parametrize("wanted", ["default", "other", "diffusers"])
@pytest.mark.parametrize("keep_alpha", [False, True])
def test_every_format_comes_back_without_loss(model, wanted: str, keep_alpha: bool, tmp_path: Path) -> None:
    family, dit, target = model
    modules = adapters(family, dit)
    assert len(modules) in (12, 13, 20)
    tensors = named(modules, wanted, parts_of=part(family, "keys").diffusers_parts, keep_alpha=keep_alpha)  # type: ignore[arg-type]
    assert any(name.endswith(".alpha") for name in tensors) == (keep_alpha or wanted == "default")
    write_lora(tmp_path / "a.safetensors", tensors, metadata={})
    read = read_lora(tmp_path / "a.safetensors", target)
    assert read.unmatched == () and read.modules.keys() == modules.keys()
    for path, weights in modules.items():
        found = read.modules[path]
        assert found.rank == weights.rank, path  # parts that share one down half are one layer again
        rows = slice(None, None, 997)
        one, other = (lora.up[rows] @ lora.down * lora.scale for lora in (found, weights))
        assert torch.allclose(one, other, atol=1e-4), path


@pytest.mark.parametrize("wanted", ["default", "other", "diffusers"])
@pytest.mark.parametrize("keep_alpha", [False, True])
def test_changes_of_biases_come_back_too(model, wanted: str, keep_alpha: bool, tmp_path: Path) -> None:
    """A PEFT file with lora_bias is read as such changes; diffusers' layers that are one of ours have a part each."""
    family, dit, target = model
    modules = adapters(family, dit)
    some = list(modules)[::2]
    biases = {f"{path}.bias": torch.randn(modules[path].out_features) for path in some}
    tensors = named(
        modules, wanted, parts_of=part(family, "keys").diffusers_parts, differences=biases, keep_alpha=keep_alpha
    )  # type: ignore[arg-type]
    write_lora(tmp_path / "a.safetensors", tensors, metadata={})
    read = read_lora(tmp_path / "a.safetensors", target)
    assert read.unmatched == () and read.modules.keys() == modules.keys()
    for name, value in read.differences.items():
        wanted_value = biases.get(name, torch.zeros_like(value))  # diffusers has zeros for the others
        assert torch.allclose(value, wanted_value, atol=1e-6), name
    assert biases.keys() <= read.differences.keys()


def test_diffusers_has_no_place_for_biases_of_other_kinds() -> None:
    dora = {"a.b": LoraWeights(torch.ones(1, 2), torch.ones(4, 1), 1.0, dora=torch.ones(4, 1))}
    with pytest.raises(WeightsError, match="full changes"):
        named(dora, "diffusers", parts_of=lambda path: (path,), differences={"a.b.bias": torch.ones(4)})


def test_alpha_is_folded_into_both_halves_or_kept() -> None:
    weights = {"blocks.0.q": LoraWeights(torch.ones(4, 3), torch.ones(5, 4), 1.0, dora=torch.ones(5, 1))}
    other = to_other(weights)
    assert set(other) == {
        f"diffusion_model.blocks.0.q.{name}" for name in ("lora_A.weight", "lora_B.weight", "dora_scale")
    }
    assert torch.allclose(other["diffusion_model.blocks.0.q.lora_A.weight"], torch.full((4, 3), math.sqrt(0.25)))
    kept = to_other(weights, prefix="x", keep_alpha=True)
    assert float(kept["x.blocks.0.q.alpha"]) == 1.0 and kept["x.blocks.0.q.lora_B.weight"].equal(torch.ones(5, 4))
    with pytest.raises(WeightsError, match="negative"):
        to_other({"a": LoraWeights(torch.ones(1, 1), torch.ones(1, 1), -1.0)})


def test_loha_and_lokr_keep_their_alpha() -> None:
    """The reference can lose their scale when it writes `other` names."""
    loha = {"a.b": LohaWeights(*[torch.ones(2, 2)] * 4, alpha=0.5)}
    assert float(to_other(loha)["diffusion_model.a.b.alpha"]) == 0.5
    lokr = {"a.b": LokrWeights(torch.ones(2, 2), None, 0.5, w2_a=torch.ones(3, 1), w2_b=torch.ones(1, 3))}
    assert set(to_default(lokr)) == {f"lora_unet_a_b.{name}" for name in ("alpha", "lokr_w1", "lokr_w2_a", "lokr_w2_b")}


@pytest.mark.parametrize(
    "weights",
    [
        LoraWeights(torch.randn(2, 6), torch.randn(4, 2), 0.5),
        LohaWeights(torch.randn(4, 2), torch.randn(2, 6), torch.randn(4, 2), torch.randn(2, 6), 0.5),
        LokrWeights(torch.randn(2, 3), None, 0.5, w2_a=torch.randn(2, 1), w2_b=torch.randn(1, 2)),
        LokrWeights(torch.randn(2, 3), torch.randn(2, 2), 0.5),
    ],
)
def test_diffusers_reads_alpha_of_no_kind(weights, tmp_path: Path) -> None:
    """A LoKr with alpha beside it loads into diffusers 0.42.1, and acts alpha / rank times too weakly."""
    target = LoraTarget({"a.b": (4, 6)})
    tensors = to_diffusers({"a.b": weights}, parts_of=lambda path: (path,))
    assert not any(name.endswith("alpha") for name in tensors)
    write_lora(tmp_path / "a.safetensors", tensors, metadata={})
    found = read_lora(tmp_path / "a.safetensors", target).modules["a.b"]
    assert found.scale == 1.0 and torch.allclose(found.change(), weights.change(), rtol=1e-5)
    kept = to_diffusers({"a.b": weights}, parts_of=lambda path: (path,), keep_alpha=True)
    assert float(kept["transformer.a.b.alpha"]) == 0.5


def test_diffusers_takes_dora_as_peft_writes_it_and_no_cut_loha() -> None:
    keys = part("hunyuan_video", "keys")
    weights = LoraWeights(torch.ones(1, 2), torch.ones(4, 1), 1.0, dora=torch.arange(4.0).unsqueeze(1))
    tensors = to_diffusers({"double_blocks.0.img_attn_proj": weights}, parts_of=keys.diffusers_parts)
    lengths = tensors["transformer.transformer_blocks.0.attn.to_out.0.lora_magnitude_vector"]
    assert lengths.tolist() == [0, 1, 2, 3]
    with pytest.raises(WeightsError, match="diffusers has 3 layers for double_blocks.0.img_attn_qkv"):
        to_diffusers(
            {"double_blocks.0.img_attn_qkv": LohaWeights(*[torch.ones(2, 2)] * 4, alpha=1.0)},
            parts_of=keys.diffusers_parts,
        )


def test_full_differences_keep_their_place() -> None:
    values = {
        "blocks.0.q.weight": torch.ones(1),
        "blocks.0.q.bias": torch.ones(2),
        "blocks.0.modulation": torch.ones(3),
    }
    assert {name: len(value) for name, value in differences_named(values, prefix=None).items()} == {
        "lora_unet_blocks_0_q.diff": 1, "lora_unet_blocks_0_q.diff_b": 2, "lora_unet_blocks_0_modulation.diff": 3
    }  # fmt: skip
    assert "x.blocks.0.q.diff_b" in differences_named(values, prefix="x")
    with pytest.raises(WeightsError, match="full changes"):
        named({}, "diffusers", parts_of=lambda path: (path,), differences=values)
