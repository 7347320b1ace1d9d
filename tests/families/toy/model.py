"""The toy DiT: pixels of the latent go through two blocks that mix channels, nudged by time and by the mean text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...parts.embeddings import timestep_features
from ...parts.weights import load_into, open_weights
from .detect import ToyConfig, check_task, detect
from .keys import dit_name


class ToyBlock(nn.Module):
    """x + gate * tanh(W(x + nudge)): takes and returns plain tensors."""

    def __init__(self, config: ToyConfig):
        super().__init__()
        self.mix = nn.Linear(config.dim, config.dim)
        self.gate = nn.Parameter(torch.ones(config.dim))

    def forward(self, x_BLD: Tensor, nudge_B1D: Tensor) -> Tensor:
        return x_BLD + self.gate * torch.tanh(self.mix(x_BLD + nudge_B1D))


class ToyModel(nn.Module):
    """Two linear layers between an entrance and an exit."""

    def __init__(self, config: ToyConfig):
        super().__init__()
        self.config = config
        self.patch_in = nn.Linear(config.channels, config.dim)
        self.time_in = nn.Linear(config.dim, config.dim)
        self.text_in = nn.Linear(config.text_dim, config.dim)
        self.blocks = nn.ModuleList(ToyBlock(config) for _ in range(config.num_layers))
        self.head = nn.Linear(config.dim, config.channels)

    @property
    def dtype(self) -> torch.dtype:
        return self.patch_in.weight.dtype

    def forward(self, x_BCTHW: Tensor, timestep_B: Tensor, text: list[Tensor]) -> Tensor:
        x_BLD = self.patch_in(x_BCTHW.flatten(2).transpose(1, 2).to(self.dtype))
        time_BD = self.time_in(timestep_features(timestep_B, dim=self.config.dim).to(self.dtype))
        text_BD = self.text_in(torch.stack([sample_LD.mean(0) for sample_LD in text]).to(self.dtype))
        for block in self.blocks:
            x_BLD = block(x_BLD, (time_BD + text_BD)[:, None])
        return self.head(x_BLD).transpose(1, 2).reshape(x_BCTHW.shape).float()


def build(config: ToyConfig, *, device: torch.device | str = "meta", dtype: torch.dtype = torch.float32) -> ToyModel:
    """A frozen model; on "meta" names and shapes only."""
    with torch.device("meta"):
        model = ToyModel(config).to(dtype)
    if torch.device(device).type != "meta":
        model = model.to_empty(device=device)
    return model.eval().requires_grad_(False)


def load(
    path: str | Path,
    *,
    task: str | None,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    transform: Callable[[str, Tensor], Tensor] | None = None,
    attention_backend: str = "auto",
    role: str = "--dit",
) -> ToyModel:
    """Load a toy DiT. `attention_backend` does not matter: there is no attention."""
    file = open_weights(path, role=role)
    variant = detect(file.shapes, file.metadata, source=f"{role} {file.path.name}")
    if task is not None:
        check_task(variant, task)
    model = build(variant.config)
    load_into(model, file, rename=dit_name, device=device, dtype=dtype, transform=transform)
    model.variant = variant
    return model


def blocks(dit: ToyModel) -> nn.ModuleList:
    """Both of them."""
    return dit.blocks


def velocity(dit: ToyModel, x_BCTHW: Tensor, timestep_B: Tensor, cond: dict[str, Any]) -> Tensor:
    """Noise - clean, float32, of x's shape. cond: "text", a list of [L, D]."""
    return dit(x_BCTHW, timestep_B, cond["text"])


def cond_from_batch(batch: Mapping[str, Any]) -> dict[str, Any]:
    """All that the toy wants to know is "bytes" of the text cache."""
    return {"text": batch["bytes"]}


def check_cache(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The toy can train on any cache of its own."""
    return ""
