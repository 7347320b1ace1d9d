"""`--network_module` and `--network_args`: names of the field, typed, and refused where they mean nothing."""

from __future__ import annotations

import pytest

from engine.contract.errors import OptionError
from engine.lora.adapters import LohaAdapter, LokrAdapter, LoraAdapter
from engine.lora.arguments import parse_network_args, read_network_arguments
from engine.lora.network import create
from tests.lora.toy import EXCLUDE, toy


def test_values_are_typed_and_misspelt_names_are_named() -> None:
    pattern = r"exclude_patterns=[r'.*ffn.*', 'a\.b']"
    values = parse_network_args(["conv_dim=4", "rank_dropout=0.1", "loraplus_lr_ratio=4", "verbose=True", pattern])
    assert values == {
        "conv_dim": 4,
        "rank_dropout": 0.1,
        "loraplus_lr_ratio": 4.0,
        "exclude_patterns": [".*ffn.*", r"a\.b"],
        "verbose": True,
    }
    assert parse_network_args(["include_patterns=.*=.*"]) == {"include_patterns": [".*=.*"]}
    wrong = {
        "conv_dims=4": "conv_dim",
        "conv_dim=x": "whole number",
        "conv_dim": "key=value",
        "network_reg_dims=((=4": "regular expressions",
        "network_reg_dims=.*ffn.*": "regular expressions",
        "network_reg_lrs=.*ffn.*=0": "above 0",
    }
    for argument, told in wrong.items():
        with pytest.raises(OptionError) as caught:
            parse_network_args([argument])
        assert told in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("module", "arguments", "kind"),
    [
        ("networks.lora", [], LoraAdapter),
        ("networks.lora_wan", [], LoraAdapter),
        ("networks.loha", [], LohaAdapter),
        ("networks.lokr", ["factor=8"], LokrAdapter),
        ("lycoris.kohya", [], LoraAdapter),
        ("lycoris.kohya", ["algo=locon"], LoraAdapter),
        ("lycoris.kohya", ["algo=LoHa", "preset=full"], LohaAdapter),
        ("lycoris.kohya", ["algo=lokr", "factor=8", "full_matrix=True"], LokrAdapter),
    ],
)
def test_modules_and_algorithms(module: str, arguments: list[str], kind: type) -> None:
    assert read_network_arguments(module, arguments).create["kind"] is kind


@pytest.mark.parametrize(
    ("module", "arguments", "told"),
    [
        ("networks.nothing", [], "unknown"),
        ("lycoris.kohya", ["algo=ia3"], "algo=ia3 cannot be trained"),
        ("lycoris.kohya", ["preset=attn-mlp"], "preset=attn-mlp"),
        ("networks.loha", ["conv_dim=4"], "conv_dim does not work with --network_module networks.loha"),
        ("networks.loha", ["loraplus_lr_ratio=4"], "loraplus_lr_ratio does not work with"),
        ("networks.lora", ["factor=4"], "factor does not work with"),
        ("networks.lora", ["algo=loha"], "algo does not work with"),
    ],
)
def test_what_does_not_go_together_is_refused(module: str, arguments: list[str], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        read_network_arguments(module, arguments)


def made(arguments: list[str], module: str = "networks.lora"):
    read = read_network_arguments(module, arguments)
    exclude = "" if read.all_linear else EXCLUDE
    return create(toy(), block_classes=["Block"], exclude=exclude, dim=2, seed=0, **read.create)


def test_lycoris_goes_on_every_linear_layer_of_the_blocks() -> None:
    """As its preset "full"; musubi-tuner's own modules leave out what the family excludes."""
    assert "blocks.0.norm_linear" in made(["algo=loha"], "lycoris.kohya").paths.values()
    assert "blocks.0.norm_linear" not in made([], "networks.loha").paths.values()


def test_ranks_by_pattern() -> None:
    lora = made([r"network_reg_dims=blocks\.0\..*=5,.*down=3", "exclude_patterns=.*proj_mlp"])
    assert {adapter.path: adapter.dim for adapter in lora.adapters.values()} == {
        "blocks.0.attn.q": 5, "blocks.0.attn.to_out.0": 5, "blocks.0.down": 5, "blocks.0.point": 5,
        "blocks.0.wide": 5, "blocks.1.attn.q": 2, "blocks.1.attn.to_out.0": 2, "blocks.1.down": 3, "blocks.1.point": 2,
    }  # fmt: skip


def test_learning_rates_by_pattern() -> None:
    lora = made([r"network_reg_lrs=.*attn.*=1e-3,blocks\.1\..*=5e-4"])
    groups = {group["name"]: (group["lr"], len(group["params"])) for group in lora.parameter_groups(1e-4)}
    assert groups == {"unet": (1e-4, 6), "unet reg_1": (1e-3, 8), "unet reg_2": (5e-4, 6)}
    fast = {group["name"]: group["lr"] for group in lora.parameter_groups(1e-4, loraplus_lr_ratio=4)}
    assert fast["unet reg_1 plus"] == pytest.approx(4e-3) and fast["unet plus"] == pytest.approx(4e-4)
