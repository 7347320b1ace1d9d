"""Adapters that a training cannot have are refused before the dataset is read and the DiT is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.__main__ import main
from engine.families.wan import tiny


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--network_args rank_dropout=1.5", "rank_dropout 1.5 is not a probability"),
        ("--network_args rank_droput=0.1", "Did you mean rank_dropout?"),
        ("--network_args exclude_patterns=.*", "No module of the model is left"),
        ("--network_weights none.safetensors", "there is no such file"),
        ("--network_weights narrow.safetensors", "tensors missing"),
        ("--network_weights narrow.safetensors --dim_from_weights", "was made for another size"),
    ],
)
def test_a_mistake_costs_no_loading(line: str, told: str, tmp_path: Path, monkeypatch, capfd) -> None:
    """The DiT of 14B takes minutes; musubi-tuner tells afterwards."""
    monkeypatch.chdir(tmp_path)
    files = tiny.write_tiny_models(tmp_path)
    halves = {"lora_down.weight": torch.ones(2, 8), "lora_up.weight": torch.ones(8, 2)}
    save_file({f"lora_unet_blocks_0_ffn_0.{name}": value for name, value in halves.items()}, "narrow.safetensors")
    options = ["--dit", str(files["dit"]), "--dataset_config", "none.toml", "--task", "t2v-1.3B", "--device", "cpu"]
    assert main(["train", "wan", *options, *line.split()]) == 2
    shown = capfd.readouterr().err
    assert told in shown and "none.toml" not in shown and "Loading the DiT" not in shown
