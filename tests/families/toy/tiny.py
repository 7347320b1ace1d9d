"""The toy's models, which are as large as toys get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...parts.weights import write_weights
from .detect import ToyConfig
from .model import build
from .vae import LATENT_CHANNELS

LEARNS_BY_HEART = False  # two linear layers with a LoRA: enough to run the demo, too little to learn a clip
CONFIG = ToyConfig(channels=LATENT_CHANNELS, dim=64, text_dim=16, num_layers=2)


def _paths(folder: Path) -> dict[str, Path]:
    return {name: folder / f"toy_{name}.safetensors" for name in ("dit", "vae", "byte_table")}


def write_tiny_models(folder: str | Path, *, seed: int = 42) -> dict[str, Path]:
    """Write the three files; the same seed gives the same weights."""
    paths = _paths(Path(folder))
    draw = torch.Generator().manual_seed(seed)

    def normal(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=draw) * shape[-1] ** -0.5

    dit = {name: normal(tuple(parameter.shape)) for name, parameter in build(CONFIG).named_parameters()}
    write_weights(paths["dit"], dit)
    write_weights(paths["vae"], {"latent_scale": torch.tensor(1.5)})
    write_weights(paths["byte_table"], {"bytes.weight": normal((256, CONFIG.text_dim))})
    return paths


def tiny_model_options(folder: str | Path) -> dict[str, dict[str, Any]]:
    """What the job file of each verb must say to use the models in `folder`."""
    paths = {name: str(path) for name, path in _paths(Path(folder)).items()}
    return {
        "cache-latents": {"vae": paths["vae"]},
        "cache-text": {"byte_table": paths["byte_table"]},
        "train": {"dit": paths["dit"]},
        "generate": paths,
    }
