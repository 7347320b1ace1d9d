"""The toy is as fast as toys are: one size, and random inputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..values import BenchModel, BenchSize, BenchVae
from .detect import ToyConfig, fullest

if TYPE_CHECKING:
    from torch import Tensor

_SIZE = BenchSize(height=64, width=64, frames=5)
MODELS = (BenchModel(name="toy", config=fullest(), heads=1, head_dim=64, train=(_SIZE,), denoise=(_SIZE,)),)


def _plain(tiny: bool) -> Any:
    raise ImportError("diffusers has no toys")


VAE = BenchVae(name="toy", sizes=(), shapes=lambda: {"latent_scale": ()}, plain=_plain)


def write_encoders(folder: Path, config: ToyConfig) -> dict[str, Path]:
    """A table of bytes."""
    import torch

    from ...parts.weights import write_weights

    path = folder / "toy_byte_table.safetensors"
    write_weights(path, {"bytes.weight": torch.randn(256, config.text_dim)})
    return {"byte_table": path}


def latents(config: ToyConfig, *, size_THW: tuple[int, int, int], window: int) -> dict[str, Tensor]:
    """One clip."""
    import torch

    from .vae import CACHE_DTYPE

    return {"latents": torch.randn(config.channels, *size_THW).to(CACHE_DTYPE)}


def caption(config: ToyConfig) -> dict[str, Tensor]:
    """A few bytes."""
    import torch

    return {"varlen_bytes": torch.randn(7, config.text_dim)}
