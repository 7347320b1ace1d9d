"""What `bench` measures of HunyuanVideo, and random inputs for it. The published sizes; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...parts.hunyuan_step_caches import RATIOS_540P
from ...parts.hunyuan_vae_public import plain_vae, public_shapes
from ...parts.step_caching import magcache_flags
from ..values import BenchModel, BenchSize, BenchVae
from .detect import HunyuanVideoConfig, fullest
from .options import TEXT_TOKENS, TILE

if TYPE_CHECKING:
    from torch import Tensor

WORDS = 120  # tokens of a caption
_SIZE = {"height": 544, "width": 960, "frames": 33}
_CONFIG = fullest()

MODELS = (
    BenchModel(
        name="hunyuan-13b",
        config=_CONFIG,
        heads=_CONFIG.num_heads,
        head_dim=_CONFIG.head_dim,
        train=(BenchSize(**_SIZE, vram="8GB"),),
        denoise=(BenchSize(**_SIZE),),
        modes={"magcache": magcache_flags((RATIOS_540P,))},
    ),
)
VAE = BenchVae(
    name="hunyuan",
    sizes=(BenchSize(**_SIZE),),
    shapes=public_shapes,
    plain=plain_vae,
    options={"cache-latents": {"vae_spatial_tile_sample_min_size": TILE}},
)


def write_encoders(folder: Path, config: HunyuanVideoConfig) -> dict[str, Path]:
    """LLaMA and CLIP of few layers."""
    from ...parts.tiny_encoders import write_tiny_encoders

    return write_tiny_encoders(
        folder, seed=1, text_width=config.text_dim, pooled_width=config.pooled_dim, image_width=None
    )


def latents(config: HunyuanVideoConfig, *, size_THW: tuple[int, int, int], window: int) -> dict[str, Tensor]:
    """One clip."""
    import torch

    return {"latents": torch.randn(config.out_dim, *size_THW).half()}


def caption(config: HunyuanVideoConfig) -> dict[str, Tensor]:
    """As long as captions are."""
    import torch

    from ...parts import clip_text

    return {
        "llm": torch.randn(TEXT_TOKENS, config.text_dim).half(),
        "llm_mask": (torch.arange(TEXT_TOKENS) < WORDS).long(),
        "clipL": torch.randn(config.pooled_dim).half(),
        "clipL_mask": (torch.arange(clip_text.MAX_TOKENS) < WORDS).long(),
    }
