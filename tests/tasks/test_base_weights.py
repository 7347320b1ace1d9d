"""A LoRA that is merged into the base before training."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from engine.contract import cli
from engine.families.wan import tiny
from engine.tasks.denoiser import load_dit, read_loras

LAYER = "blocks.0.ffn.0"


@pytest.mark.parametrize("weight_format", ["stored", "fp8_scaled"])
def test_it_is_merged_before_the_weights_become_fp8(weight_format, tmp_path):
    """The reference adds it to the codes and forgets their scale."""
    dit = tiny.write_tiny_models(tmp_path)["dit"]
    rows, columns = tiny.DIT_CONFIG.ffn_dim, tiny.DIT_CONFIG.dim
    down, up = torch.randn(2, columns) * columns**-0.5, torch.randn(rows, 2)
    name = f"lora_unet_{LAYER.replace('.', '_')}"
    save_file({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, tmp_path / "lora.safetensors")
    job = cli.parse(["train", "wan", "--dit", str(dit), "--dataset_config", "d.toml", "--task", "t2v-1.3B"])

    def weight(format_: str, loras=()) -> torch.Tensor:
        model = load_dit(
            job, str(dit), device=torch.device("cpu"), loras=loras, weight_format=format_, say=lambda event: None
        )
        layer = model.get_submodule(LAYER)
        with torch.no_grad():
            return (layer(torch.eye(columns)) - layer(torch.zeros(1, columns))).T

    loras = read_loras(
        job, str(dit), [str(tmp_path / "lora.safetensors")], [], role="--base_weights", say=lambda event: None
    )
    wanted = weight("stored") + up @ down
    found = weight(weight_format, loras)
    assert (found - wanted).norm() < 0.05 * (up @ down).norm()
