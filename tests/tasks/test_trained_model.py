"""Adapters that a training cannot have are refused before the dataset is read and the DiT is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.__main__ import main
from engine.contract.cli import parse
from engine.families.wan import model, tiny
from engine.tasks.experts import experts_of
from engine.tasks.trained_model import _network


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


def test_what_network_weights_change_in_full_is_told_as_left_out(tmp_path: Path) -> None:
    """Distilled models come as LoRAs that change biases too."""
    parts = {"lora_A.weight": torch.ones(2, 256), "lora_B.weight": torch.ones(256, 2), "diff_b": torch.ones(256)}
    path = tmp_path / "distilled.safetensors"
    save_file({f"diffusion_model.blocks.0.self_attn.q.{name}": value for name, value in parts.items()}, path)
    words = f"train wan --dit a --dataset_config b --dim_from_weights --network_weights {path}"
    job, said = parse(words.split()), []
    network = _network(job, experts_of(job)[0], model.build(tiny.DIT_CONFIG, device="cpu"), 0, said.append)
    assert list(network.paths.values()) == ["blocks.0.self_attn.q"]
    (warning,) = (event.message for event in said if type(event).__name__ == "Warning_")
    assert "distilled.safetensors also changes 1 parameters in full, which is left out" in warning
