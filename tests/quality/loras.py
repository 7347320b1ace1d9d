"""A LoRA of Pocket Wan that nobody trained, and the same in every naming that `lora convert` writes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from engine.families.wan import model
from engine.lora.files import write_lora
from engine.lora.formats import to_default
from engine.lora.weights import LoraWeights

from .making import WAN, run

RANK = 4
EXACT, ROUNDED = 1.0, 2.0
"""Alphas. Converting folds the square root of alpha / rank into both halves: 1/2, which loses no bit, and 0.707."""
STRENGTH = 0.1  # of a layer's weight: the size of its change (Frobenius norms)
SEED = 7


def write_random(path: Path, *, alpha: float) -> Path:
    """Changes every linear layer of the blocks in a random direction; musubi-tuner's naming, float32."""
    device = torch.device("cpu")
    dit = model.load(WAN.files["dit"], task=None, device=device, dtype=torch.float32)
    source = torch.Generator().manual_seed(SEED)
    layers = {name: module.weight for name, module in dit.named_modules() if type(module) is nn.Linear}
    found = {name: _random(weight, alpha, source) for name, weight in layers.items() if name.startswith("blocks.")}
    write_lora(path, to_default(found), metadata={})
    return path


def _random(weight_OI: Tensor, alpha: float, source: torch.Generator) -> LoraWeights:
    out_features, in_features = weight_OI.shape
    down = torch.randn(RANK, in_features, generator=source)
    up = torch.randn(out_features, RANK, generator=source)
    change = LoraWeights(down=down, up=up, alpha=alpha)
    size = STRENGTH * float(weight_OI.detach().norm()) / change.squared_norm() ** 0.5
    return LoraWeights(down=down * size**0.5, up=up * size**0.5, alpha=alpha)


def converted(path: Path, folder: Path) -> dict[str, Path]:
    """The file by `lora convert` under each other naming, and from each of these back."""
    made = {}
    for name in ("other", "diffusers"):
        made[name] = convert(path, folder / f"{name}.safetensors", target=name)
        made[f"{name} and back"] = convert(made[name], folder / f"{name}_back.safetensors", target="default")
    return made


def convert(path: Path, output: Path, *, target: str) -> Path:
    run("lora", "convert", "--input", path, "--output", output, "--target", target, "--dit", WAN.files["dit"])
    return output
