"""What `bench` measures of FramePack, and random inputs for it. The published size; nothing is downloaded.

Its VAE is HunyuanVideo's, and measured there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...parts.hunyuan_vae_public import LATENT_CHANNELS, plain_vae, public_shapes
from ..values import BenchModel, BenchSize, BenchVae
from .detect import FramePackConfig, fullest
from .options import IMAGE_TOKENS
from .sections import HISTORY_FRAMES, plain_layout

if TYPE_CHECKING:
    from torch import Tensor

WORDS = 120  # tokens of a caption
_SIZE = BenchSize(height=640, width=640, frames=37, vram="8GB", label="640x640")  # one section
_CONFIG = fullest()

MODELS = (
    BenchModel(
        name="framepack",
        config=_CONFIG,
        heads=_CONFIG.num_heads,
        head_dim=_CONFIG.head_dim,
        train=(_SIZE,),
        denoise=(_SIZE,),
        options={"generate": {"video_sections": 1, "video_length": None}},
        modes={"magcache": ("--magcache_mag_ratios", "0")},
    ),
)
VAE = BenchVae(name="hunyuan", sizes=(), shapes=public_shapes, plain=plain_vae)


def write_encoders(folder: Path, config: FramePackConfig) -> dict[str, Path]:
    """LLaMA, CLIP and SigLIP of few layers."""
    from ...parts.tiny_encoders import write_tiny_encoders

    return write_tiny_encoders(
        folder, seed=1, text_width=config.text_dim, pooled_width=config.pooled_dim, image_width=config.image_dim
    )


def latents(config: FramePackConfig, *, size_THW: tuple[int, int, int], window: int) -> dict[str, Tensor]:
    """The first section of a clip, with its history."""
    import torch

    from .conditions import IMAGE_STATES, history_tensors

    def noise(frames: int) -> Tensor:
        return torch.randn(LATENT_CHANNELS, frames, *size_THW[1:]).half()

    layout = plain_layout(0, window=window)
    beside = history_tensors(noise(1), noise(HISTORY_FRAMES), layout, f1=False)
    assert config.image_dim is not None
    return {"latents": noise(window), **beside, IMAGE_STATES: torch.randn(IMAGE_TOKENS, config.image_dim).half()}


def caption(config: FramePackConfig) -> dict[str, Tensor]:
    """As long as captions are."""
    import torch

    from .text import CACHE_TOKENS

    return {
        "llama_vec": torch.randn(CACHE_TOKENS, config.text_dim).half(),
        "llama_attention_mask": torch.arange(CACHE_TOKENS) < WORDS,
        "clip_l_pooler": torch.randn(config.pooled_dim).half(),
    }
