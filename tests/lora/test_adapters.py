"""LoHa, LoKr and DoRA in training. Their numbers are checked against lycoris and musubi-tuner in tests/golden."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from engine.contract.errors import OptionError
from engine.lora.arguments import read_network_arguments
from engine.lora.files import read_lora, write_lora
from engine.lora.formats import to_default
from engine.lora.kronecker import factorised, lokr_shapes
from engine.lora.names import LoraTarget
from engine.lora.network import create, create_like
from engine.memory.fp8 import Fp8Linear
from tests.lora.toy import EXCLUDE, WIDTH, toy

MODULES = {
    "LoHa": ("networks.loha", []),
    "LoKr": ("networks.lokr", []),
    "LoKr by 2": ("lycoris.kohya", ["algo=lokr", "factor=2", "decompose_both=True"]),
    "LoKr whole": ("networks.lokr", ["full_matrix=True"]),
    "LoRA with DoRA": ("networks.lora", ["dora_wd=True"]),
    "LoHa with DoRA": ("networks.loha", ["dora_wd=True"]),
    "LoKr with DoRA": ("lycoris.kohya", ["algo=lokr", "dora_wd=True"]),
}
LINEARS = ["attn.q", "attn.to_out.0", "proj_mlp", "down"]


def network(dit, name: str, **values):
    module, arguments = MODULES[name]
    read = read_network_arguments(module, arguments)
    values = {"dim": 1, "alpha": 2.0, "seed": 3, **read.create, **values}
    return create(dit, block_classes=["Block"], exclude=EXCLUDE, **values)


def shake(lora) -> None:
    torch.manual_seed(9)
    for name, parameter in lora.named_parameters():
        if not name.endswith("dora_scale"):
            nn.init.normal_(parameter, std=0.5)


@pytest.mark.parametrize("name", MODULES)
def test_bf16_adapters_work_where_nothing_is_cast_by_itself(name: str) -> None:
    """As `--full_bf16` makes them, for samples that are made without autocast."""
    dit = toy()
    lora = network(dit, name)
    shake(lora)
    x = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(1))
    exact = dit(x).detach()
    for parameter in lora.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    assert (dit(x) - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("name", MODULES)
def test_a_fresh_adapter_changes_nothing_and_sits_on_linear_layers(name: str) -> None:
    dit = toy()
    x = torch.randn(2, 5, WIDTH)
    base = dit(x)
    lora = network(dit, name)
    assert torch.allclose(dit(x), base, atol=1e-5)
    assert list(lora.paths.values()) == [f"blocks.{number}.{path}" for number in range(2) for path in LINEARS]


@pytest.mark.parametrize("name", [name for name in MODULES if "DoRA" not in name])
def test_gradients_are_those_of_the_full_matrix(name: str) -> None:
    """The change is applied factor by factor, or built again in backward: the same derivative either way."""
    dit = toy()
    lora = network(dit, name)
    shake(lora)
    lora.requires_grad_(True)
    adapter, layer = lora.adapters["lora_unet_blocks_0_down"], dit.blocks[0].down
    x = torch.randn(2, 3, 2 * WIDTH, requires_grad=True)
    layer(x).square().sum().backward()
    found = {key: parameter.grad.clone() for key, parameter in adapter.named_parameters()}
    found["x"] = x.grad.clone()
    adapter.zero_grad()
    x.grad = None
    dense = nn.functional.linear(x, layer.weight + adapter._rows(0, WIDTH), layer.bias)
    dense.square().sum().backward()
    wanted = {key: parameter.grad for key, parameter in adapter.named_parameters()} | {"x": x.grad}
    for key, value in wanted.items():
        assert torch.allclose(found[key], value, rtol=1e-4, atol=1e-3), key


def test_dora_moves_length_and_direction_apart() -> None:
    """Scaling the lengths scales the rows of weight + change, whatever the change; the norm is not differentiated."""
    dit = toy()
    lora = network(dit, "LoRA with DoRA", dim=2)
    shake(lora)
    lora.requires_grad_(True)
    adapter, layer = lora.adapters["lora_unet_blocks_0_down"], dit.blocks[0].down
    x = torch.randn(3, 2 * WIDTH)
    with torch.no_grad():
        adapter.dora_scale.mul_(2.0)
    changed = layer.weight + adapter._rows(0, WIDTH)
    directions = changed / changed.norm(dim=1, keepdim=True)
    wanted = nn.functional.linear(x, 2 * layer.weight.norm(dim=1, keepdim=True) * directions, layer.bias)
    assert torch.allclose(layer(x), wanted, atol=1e-5)
    layer(x).sum().backward()
    gain = (adapter.dora_scale / changed.norm(dim=1, keepdim=True)).detach()
    up = (torch.ones(3, WIDTH).T @ (x @ adapter.lora_down.weight.T)) * gain * adapter.scale
    assert torch.allclose(adapter.lora_up.weight.grad, up, atol=1e-4)
    assert adapter.dora_scale.grad.abs().sum() > 0


def test_dora_on_a_layer_kept_in_fp8_knows_its_real_lengths() -> None:
    dit = toy()
    dit.blocks[0].down = Fp8Linear.from_linear(dit.blocks[0].down, "channel")
    lora = network(dit, "LoHa with DoRA")
    adapter = lora.adapters["lora_unet_blocks_0_down"]
    real = toy().blocks[0].down.weight.norm(dim=1, keepdim=True)
    assert torch.allclose(adapter.dora_scale, real, rtol=0.05)
    x = torch.randn(2, 2 * WIDTH)
    assert torch.allclose(dit.blocks[0].down(x), adapter._base_forward(x), atol=1e-5)


@pytest.mark.parametrize("name", MODULES)
def test_a_file_gives_the_same_network_back(name: str, tmp_path) -> None:
    """Kind, sizes and alpha are read off the file, LoKr's factors included."""
    dit = toy()
    lora = network(dit, name)
    shake(lora)
    path = tmp_path / "a.safetensors"
    write_lora(path, lora.state(), metadata={})
    assert to_default(lora.weights()).keys() == lora.state().keys()
    read = read_lora(path, LoraTarget.of(toy()))
    again_dit = toy()
    again = create_like(again_dit, read.modules, seed=8)
    again.load_state(to_default(read.modules))
    assert all(torch.equal(value, again.state()[key]) for key, value in lora.state().items())
    x = torch.randn(2, 5, WIDTH)
    assert torch.allclose(again_dit(x), dit(x), atol=1e-6)


@pytest.mark.parametrize("name", MODULES)
def test_norms_are_clamped_through_all_factors(name: str) -> None:
    lora = network(toy(), name)
    shake(lora)
    changes = {path: weights.change().norm() for path, weights in lora.weights().items()}
    limit = sorted(changes.values())[len(changes) // 2]
    stats = lora.clamp_norms(float(limit))
    after = {path: weights.change().norm() for path, weights in lora.weights().items()}
    assert stats.scaled == sum(value > limit for value in changes.values())
    assert max(after.values()) == pytest.approx(float(limit), rel=1e-4) == pytest.approx(stats.largest, rel=1e-4)
    assert all(math.isclose(value, min(changes[path], limit), rel_tol=1e-4) for path, value in after.items())


@pytest.mark.parametrize("values", [{"rank_dropout": 0.5}, {"dropout": 0.5}, {"module_dropout": 0.5}])
def test_dropouts_act_in_training_only_and_keep_the_mean(values: dict[str, float]) -> None:
    dit = toy()
    lora = network(dit, "LoKr", **values)
    shake(lora)
    layer, x = dit.blocks[0].attn["q"], torch.randn(2, 3, WIDTH)
    with lora.disabled():
        base = layer(x)
    lora.eval()
    full = layer(x)
    assert torch.equal(layer(x), full)
    lora.train()
    torch.manual_seed(0)
    some = torch.stack([layer(x).detach() for _ in range(3000)])
    wanted = base + (full - base) * (0.5 if "module_dropout" in values else 1.0)
    assert some.std(dim=0).max() > 0.01 and torch.allclose(some.mean(dim=0), wanted, atol=0.3)


def test_factors_are_even_or_as_asked() -> None:
    assert factorised(5120) == (64, 80) and factorised(13824) == (108, 128) and factorised(3072) == (48, 64)
    assert factorised(512, 4) == (4, 128) and factorised(512, 1024) == (16, 32) and factorised(127) == (1, 127)
    assert factorised(250, 8) == (5, 50)  # 8 does not divide it: the largest below
    assert factorised(250, 0) == (1, 250)  # as in lycoris
    assert lokr_shapes(5120, 13824, 4) == {"lokr_w1": (64, 108), "lokr_w2_a": (80, 4), "lokr_w2_b": (4, 128)}
    assert lokr_shapes(5120, 5120, 40) == {"lokr_w1": (64, 64), "lokr_w2": (80, 80)}


def test_dora_is_for_linear_layers() -> None:
    with pytest.raises(OptionError, match="linear layers only"):
        read_network_arguments("networks.lora", ["dora_wd=True", "conv_dim=2"])


def test_compute_follows_autocast_and_weights_stay_float32() -> None:
    for name in MODULES:
        dit = toy().to(torch.bfloat16)
        lora = network(dit, name)
        shake(lora)
        lora.requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16):
            dit.blocks[0].attn["q"](torch.randn(1, 3, WIDTH)).sum().backward()
        adapter = lora.adapters["lora_unet_blocks_0_attn_q"]
        assert {parameter.grad.dtype for parameter in adapter.parameters()} == {torch.float32}, name
