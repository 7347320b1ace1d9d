"""Adapters: where they go, what they compute, what they may be told."""

from __future__ import annotations

import gzip
import importlib
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.contract.errors import OptionError, WeightsError
from engine.lora.network import create, targets
from tests.lora.toy import EXCLUDE, LINEARS, WIDTH, Toy, toy


def network(dit: Toy, **values):
    return create(dit, block_classes=["Block"], exclude=EXCLUDE, **{"dim": 2, "alpha": 1.0, "seed": 3, **values})


def shake(lora) -> None:
    """Give the up matrices something to do."""
    torch.manual_seed(9)
    for adapter in lora.adapters.values():
        nn.init.normal_(adapter.lora_up.weight)


def test_targets_are_the_linears_of_the_blocks_without_the_excluded() -> None:
    lora = network(toy())
    expected = [f"blocks.{number}.{name}" for number in range(2) for name in LINEARS]
    assert list(lora.paths.values()) == expected
    assert "lora_unet_blocks_0_attn_to_out_0" in lora.paths


def test_a_pattern_must_match_the_whole_path_and_include_rescues() -> None:
    dit = toy()
    assert not any("norm" in path for path in targets(dit, block_classes=["Block"], exclude=[EXCLUDE]))
    everything = targets(dit, block_classes=["Block"], exclude=["norm"])
    assert "blocks.0.norm_linear" in everything
    rescued = targets(dit, block_classes=["Block"], exclude=[EXCLUDE], include=[r"blocks\.1\.norm_linear"])
    assert [path for path in rescued if "norm" in path] == ["blocks.1.norm_linear"]
    one_block = targets(dit, block_classes=["Block"], exclude=[EXCLUDE, ".*"], include=[".*blocks[.]1[.].*"])
    assert one_block and all(path.startswith("blocks.1.") for path in one_block)
    with pytest.raises(OptionError, match="regular expression"):
        targets(dit, block_classes=["Block"], exclude=["(("])
    with pytest.raises(OptionError, match="left"):
        create(dit, block_classes=["Nothing"], exclude="")


def test_wide_convolutions_need_conv_dim() -> None:
    assert not any("wide" in path for path in network(toy()).paths.values())
    assert not network(toy()).has_wide_convolutions
    lora = network(toy(), conv_dim=3, conv_alpha=6.0)
    assert lora.has_wide_convolutions
    wide = lora.adapters["lora_unet_blocks_0_wide"]
    assert wide.lora_down.weight.shape == (3, WIDTH, 3, 3, 3)
    assert wide.lora_up.weight.shape == (WIDTH, 3, 1, 1, 1)
    assert wide.scale == 2.0


def test_output_is_base_plus_scaled_product_and_a_fresh_lora_changes_nothing() -> None:
    dit = toy()
    x = torch.randn(2, 5, WIDTH)
    base = dit(x)
    lora = network(dit, dim=4, alpha=2.0)
    assert torch.equal(dit(x), base)
    shake(lora)
    adapter = lora.adapters["lora_unet_blocks_0_attn_q"]
    layer = dit.blocks[0].attn["q"]
    expected = x @ layer.weight.T + layer.bias + 0.5 * (x @ adapter.lora_down.weight.T @ adapter.lora_up.weight.T)
    assert torch.allclose(layer(x), expected, atol=1e-6)
    assert not torch.allclose(dit(x), base)
    with lora.disabled():
        assert torch.equal(dit(x), base)
    lora.multiplier = 0.0
    assert torch.equal(dit(x), base)
    lora.multiplier = -1.0
    assert torch.allclose(layer(x), 2 * (x @ layer.weight.T + layer.bias) - expected, atol=1e-5)
    lora.detach()
    assert torch.equal(dit(x), base)


@pytest.mark.parametrize("alpha", [0, 0.0, None])
def test_alpha_zero_or_none_means_the_rank(alpha) -> None:
    adapter = network(toy(), dim=4, alpha=alpha).adapters["lora_unet_blocks_0_down"]
    assert adapter.scale == 1.0 and float(adapter.alpha) == 4.0


def test_start_values_are_kaiming_uniform_and_repeatable() -> None:
    first, again, other = network(toy()), network(toy()), network(toy(), seed=4)
    name = "lora_unet_blocks_1_down.lora_down.weight"
    assert torch.equal(first.state()[name], again.state()[name])
    assert not torch.equal(first.state()[name], other.state()[name])
    assert first.state()[name].abs().max() <= 1 / math.sqrt(2 * WIDTH)
    assert all(not value.any() for key, value in first.state().items() if "lora_up" in key)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_stay_float32_on_a_half_precision_base(dtype) -> None:
    dit = toy().to(dtype)
    lora = network(dit)
    shake(lora)
    x = torch.randn(1, 3, WIDTH, dtype=dtype)
    layer = dit.blocks[0].down
    assert layer(torch.randn(1, 3, 2 * WIDTH, dtype=dtype)).dtype == dtype
    assert {parameter.dtype for parameter in lora.parameters()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        dit(x).sum().backward()
    assert lora.adapters["lora_unet_blocks_0_down"].lora_up.weight.grad.dtype == torch.float32
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in dit.parameters())


def test_a_quantised_layer_that_is_no_linear_is_adapted_through_its_forward() -> None:
    class Quantised(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.in_features, self.out_features = linear.in_features, linear.out_features
            self.weight = nn.Parameter(linear.weight.to(torch.float8_e4m3fn), requires_grad=False)
            self.bias = linear.bias

        def forward(self, x):
            return nn.functional.linear(x, self.weight.to(x.dtype), self.bias)

    dit = toy()
    dit.blocks[0].down = Quantised(dit.blocks[0].down)
    lora = network(dit)
    shake(lora)
    x = torch.randn(3, 2 * WIDTH, requires_grad=True)
    dit.blocks[0].down(x).sum().backward()
    assert x.grad is not None
    assert lora.adapters["lora_unet_blocks_0_down"].lora_down.weight.grad.abs().sum() > 0


def test_dropouts_act_in_training_only_and_keep_the_mean() -> None:
    for values in ({"dropout": 0.5}, {"rank_dropout": 0.5}, {"module_dropout": 0.5}):
        dit = toy()
        lora = network(dit, dim=4, **values)
        shake(lora)
        layer, x = dit.blocks[0].attn["q"], torch.randn(2, 3, WIDTH)
        lora.eval()
        full = layer(x)
        assert torch.equal(layer(x), full)
        lora.train()
        torch.manual_seed(0)
        some = torch.stack([layer(x).detach() for _ in range(2000)])
        assert some.std(dim=0).max() > 0.01
        wanted = full
        if "module_dropout" in values:  # dropped whole and not made up for, like stochastic depth without scaling
            with lora.disabled():
                wanted = (full + layer(x)) / 2
        assert torch.allclose(some.mean(dim=0), wanted, atol=0.4)
    with pytest.raises(OptionError, match="probability"):
        network(toy(), rank_dropout=1.0)


def test_rank_dropout_drops_whole_ranks_of_a_sample() -> None:
    dit = toy()
    lora = network(dit, dim=4, rank_dropout=0.5).train()
    adapter = lora.adapters["lora_unet_blocks_0_attn_q"]
    hidden, scale = adapter._drop(torch.ones(3, 7, 4), 1.0)
    assert scale == 2.0
    assert torch.equal(hidden, hidden[:, :1].expand_as(hidden))


def test_lora_plus_makes_the_up_matrices_faster() -> None:
    lora = network(toy())
    (plain,) = lora.parameter_groups(0.1)
    assert (plain["lr"], plain["name"], len(plain["params"])) == (0.1, "unet", 20)
    down, up = lora.parameter_groups(0.1, loraplus_lr_ratio=4)
    assert (down["lr"], up["lr"], up["name"]) == (0.1, 0.4, "unet plus")
    assert all(not parameter.any() for parameter in up["params"]) and len(up["params"]) == 10


def test_parameter_groups_are_there_at_learning_rate_zero() -> None:
    assert network(toy()).parameter_groups(0.0)[0]["params"]


def test_max_norm_shrinks_only_what_is_too_large() -> None:
    lora = network(toy(), conv_dim=2)
    shake(lora)
    quiet = lora.adapters["lora_unet_blocks_0_down"]
    with torch.no_grad():
        quiet.lora_up.weight.mul_(1e-3)
    before = quiet.lora_up.weight.clone()

    def norms() -> dict[str, float]:
        product = {
            name: (adapter.lora_up.weight.flatten(1) @ adapter.lora_down.weight.flatten(1)).norm() * adapter.scale
            for name, adapter in lora.adapters.items()
        }
        return {name: float(value.detach()) for name, value in product.items()}

    too_large = sum(value > 0.5 for value in norms().values())
    assert 0 < too_large < len(lora.adapters)
    stats = lora.clamp_norms(0.5)
    after = norms()
    assert stats.scaled == too_large
    assert max(after.values()) == pytest.approx(0.5, rel=1e-4) == pytest.approx(stats.largest, rel=1e-4)
    assert stats.average == pytest.approx(sum(after.values()) / len(after), rel=1e-4)
    assert torch.equal(quiet.lora_up.weight, before)
    assert lora.clamp_norms(10.0).scaled == 0


def test_state_round_trip_and_its_errors() -> None:
    one, two = network(toy()), network(toy(), seed=8)
    shake(one)
    two.load_state(one.state())
    assert all(torch.equal(value, two.state()[name]) for name, value in one.state().items())
    assert one.state()["lora_unet_blocks_0_down.alpha"].shape == ()
    with pytest.raises(WeightsError, match="network_dim|shape"):
        network(toy(), dim=3).load_state(one.state())
    with pytest.raises(WeightsError, match="missing"):
        two.load_state({})


LAYOUTS = Path(__file__).parents[1] / "layouts"


@pytest.mark.parametrize("size", ["1_3b", "14b"])
def test_wan_modules_are_those_of_the_reference(size: str) -> None:
    found = list(LAYOUTS.rglob(f"lora_wan21_t2v_{size}_musubi.json.gz"))
    if not found:
        pytest.skip("the layout files are not in this checkout")
    detect = importlib.import_module("engine.families.wan.detect")
    keys = importlib.import_module("engine.families.wan.keys")
    model = importlib.import_module("engine.families.wan.model")
    checkpoint = json.loads(gzip.decompress(next(LAYOUTS.rglob(f"wan21_t2v_{size}.json.gz")).read_bytes()))
    variant = detect.detect({name: tuple(shape) for name, shape in checkpoint["tensors"].items()}, {})
    dit = model.build(variant.config, device="meta")
    lora = create(dit, block_classes=keys.LORA_BLOCKS, exclude=keys.LORA_EXCLUDE, dim=16)
    expected = json.loads(gzip.decompress(found[0].read_bytes()))["tensors"]
    assert {name: list(value.shape) for name, value in lora.state().items()} == expected
