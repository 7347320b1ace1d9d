"""Small FramePack checkpoints in the public layouts, written in seconds: what tests run on.

The VAE keeps a picture and the encoders have unit variance (`parts.tiny_*`); the DiT is random. Given up: any use as a
real model; a DiT that a LoRA can teach a clip by heart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...parts.tiny_encoders import CLIP_NAME, LLAMA_NAME, SIGLIP_NAME, write_tiny_encoders
from ...parts.tiny_hunyuan_vae import write_vae
from ...parts.weights import write_weights
from . import model
from .detect import FramePackConfig

DIT_NAME, VAE_NAME = "framepack_i2v_tiny.safetensors", "hunyuan_video_vae_tiny.safetensors"
TEXT_WIDTH, POOLED_WIDTH, IMAGE_WIDTH = 64, 64, 48

DIT_CONFIG = FramePackConfig(
    dim=64, ffn_dim=128, refiner_ffn_dim=256, in_dim=16, out_dim=16, text_dim=TEXT_WIDTH, pooled_dim=POOLED_WIDTH,
    num_layers=1, num_single_layers=2, num_refiner_layers=1, num_heads=2, head_dim=32, image_dim=IMAGE_WIDTH,
    rope_axes=(4, 14, 14),
)  # fmt: skip


def dit_tensors(seed: int, config: FramePackConfig = DIT_CONFIG) -> dict[str, Tensor]:
    """A FramePack DiT under the published names, float32."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, parameter in model.build(config).named_parameters():
        shape = tuple(parameter.shape)
        if name.endswith(".bias"):
            tensors[name] = torch.zeros(shape)
        elif len(shape) == 1:
            tensors[name] = torch.ones(shape)
        else:
            fan_in = parameter[0].numel()
            tensors[name] = torch.randn(shape, generator=generator) * 0.5 * fan_in**-0.5
    return tensors


def write_tiny_models(folder: str | Path, *, seed: int = 42) -> dict[str, Path]:
    """Write all files into `folder` (made if missing); the same seed gives the same weights. Under 5 MB.

    Returns their paths by option name. Each file appears whole or not at all.
    """
    folder = Path(folder)
    paths = write_tiny_encoders(
        folder, seed=seed, text_width=TEXT_WIDTH, pooled_width=POOLED_WIDTH, image_width=IMAGE_WIDTH
    )
    paths |= {"dit": folder / DIT_NAME, "vae": folder / VAE_NAME}
    write_weights(paths["dit"], dit_tensors(seed + 3), metadata={"format": "pt", "head_dim": str(DIT_CONFIG.head_dim)})
    write_vae(paths["vae"], seed=seed + 4)
    return paths


DEMO_WINDOW = 2  # latent frames in a section: the demo's clips of 17 frames make two of them
NOT_IN_DEMO = ("video_length",)  # a video is measured in sections
DATASET_KEYS = {"fp_latent_window_size": DEMO_WINDOW}
LEARNS_BY_HEART = False  # what the DiT puts out is too short to reach a clip's velocities


def tiny_model_options(folder: str | Path) -> dict[str, dict[str, Any]]:
    """What the job files of each verb must say to use the models in `folder`."""
    folder = Path(folder)
    text = {"text_encoder1": str(folder / LLAMA_NAME), "text_encoder2": str(folder / CLIP_NAME)}
    image = {"image_encoder": str(folder / SIGLIP_NAME)}
    dit, vae = {"dit": str(folder / DIT_NAME)}, {"vae": str(folder / VAE_NAME)}
    return {
        "cache-latents": {**vae, **image},
        "cache-text": text,
        "train": dit,
        "generate": {
            **{**dit, **vae, **text, **image},
            **{"latent_window_size": DEMO_WINDOW, "video_sections": 2},
        },
    }
