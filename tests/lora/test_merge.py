"""Merging into weights gives what the attached network gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from engine.contract.errors import OptionError, WeightsError
from engine.lora.files import write_lora
from engine.lora.formats import to_other
from engine.lora.merge import load_loras, merger, select
from engine.lora.names import LoraTarget
from engine.lora.network import create
from tests.lora.toy import EXCLUDE, WIDTH, Toy, toy

TARGET = LoraTarget.of(toy())


def trained(path: Path, **values) -> tuple[Toy, Path]:
    """A model with a LoRA that does something, and that LoRA in a file."""
    dit = toy()
    lora = create(dit, block_classes=["Block"], exclude=EXCLUDE, **{"dim": 2, "alpha": 3.0, "conv_dim": 2, **values})
    torch.manual_seed(5)
    for adapter in lora.adapters.values():
        nn.init.normal_(adapter.lora_up.weight, std=0.3)
    lora.multiplier = 0.7
    write_lora(path, lora.state(), metadata={})
    return dit, path


def merged(loras) -> Toy:
    dit, transform = toy(), merger(loras)
    with torch.no_grad():
        for name, parameter in dit.named_parameters():
            parameter.copy_(transform(name, parameter.detach().clone()))
    return dit


def test_merged_weights_compute_what_the_network_computes(tmp_path: Path) -> None:
    adapted, path = trained(tmp_path / "a.safetensors")
    told: list = []
    dit = merged(load_loras([path], [0.7], target=TARGET, say=told.append))
    x = torch.randn(2, 5, WIDTH)
    assert torch.allclose(dit(x), adapted(x), atol=1e-5)
    assert not torch.allclose(dit(x), toy()(x), atol=1e-2)
    assert told == []


def test_a_missing_multiplier_is_one_and_loras_add_up(tmp_path: Path) -> None:
    """The reference fails on len() when a LoRA comes without a multiplier."""
    _, path = trained(tmp_path / "a.safetensors")
    both = load_loras([path, path], [0.25], target=TARGET, say=lambda event: None)
    assert [multiplier for _, multiplier in both] == [0.25, 1.0]
    name = "blocks.0.down.weight"
    base = toy().get_parameter(name).detach()
    once = merger([(both[0][0], 1.25)])(name, base)
    assert torch.allclose(merger(both)(name, base), once, atol=1e-6)
    with pytest.raises(OptionError, match="multipliers"):
        load_loras([path], [1.0, 1.0], target=TARGET, say=lambda event: None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_sum_is_float32_and_the_dtype_stays(tmp_path: Path, dtype: torch.dtype) -> None:
    _, path = trained(tmp_path / "a.safetensors")
    ((file, _),) = load_loras([path], target=TARGET, say=lambda event: None)
    name = "blocks.0.down.weight"
    base = toy().get_parameter(name).detach().to(dtype)
    result = merger([(file, 1.0)])(name, base)
    expected = (base.float() + file.modules["blocks.0.down"].change()).to(dtype)
    assert result.dtype == dtype and torch.equal(result.float(), expected.float())
    untouched = torch.ones(3, dtype=dtype)
    assert merger([(file, 1.0)])("head.weight", untouched) is untouched


def test_full_differences_of_distilled_loras_are_added(tmp_path: Path) -> None:
    tensors = {"diffusion_model.blocks.0.down.diff_b": torch.full((WIDTH,), 2.0)}
    tensors |= {"diffusion_model.blocks.0.norm_linear.diff": torch.full((WIDTH, WIDTH), 1.0)}
    save_file(tensors, tmp_path / "a.safetensors")
    loras = load_loras([tmp_path / "a.safetensors"], [0.5], target=TARGET, say=lambda event: None)
    transform = merger(loras)
    assert torch.equal(transform("blocks.0.down.bias", torch.zeros(WIDTH)), torch.ones(WIDTH))
    assert torch.equal(
        transform("blocks.0.norm_linear.weight", torch.zeros(WIDTH, WIDTH)), torch.full((WIDTH, WIDTH), 0.5)
    )


def test_unmatched_keys_are_one_warning_and_another_size_is_an_error(tmp_path: Path) -> None:
    _, path = trained(tmp_path / "a.safetensors")
    ((file, _),) = load_loras([path], target=TARGET, say=lambda event: None)
    extra = to_other(file.modules) | {f"text_encoder.{number}.lora_A.weight": torch.ones(1, 1) for number in range(7)}
    save_file(extra, tmp_path / "b.safetensors")
    told: list = []
    load_loras([tmp_path / "b.safetensors"], target=TARGET, say=told.append)
    assert len(told) == 1 and "7 tensors" in told[0].message and told[0].message.endswith("4.lora_A.weight, …")
    with pytest.raises(WeightsError, match="the change of"):
        merger([(file, 1.0)])("blocks.0.down.weight", torch.zeros(3, 3))


def test_patterns_choose_modules(tmp_path: Path) -> None:
    """The reference hands the list of patterns to re.compile and crashes."""
    _, path = trained(tmp_path / "a.safetensors")
    ((file, _),) = load_loras([path], target=TARGET, say=lambda event: None)
    kept = select(file, include=["blocks_0", r"blocks\.1\.down"], exclude=["attn"])
    assert sorted(kept.modules) == [
        "blocks.0.down", "blocks.0.point", "blocks.0.proj_mlp", "blocks.0.wide", "blocks.1.down"
    ]  # fmt: skip
    with pytest.raises(OptionError, match="leave none"):
        select(file, include=["nowhere"])
    assert select(file, include=[""], exclude=[""]) == file  # of a stack, where only another LoRA has patterns
    with pytest.raises(OptionError, match="regular expression"):
        select(file, exclude=["(("])
