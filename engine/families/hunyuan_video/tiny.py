"""Small HunyuanVideo checkpoints in the layouts of the public files, written in seconds: for demos and tests.

Nothing here is trained. The VAE keeps a picture's colours (parts/tiny_hunyuan_vae), the encoders are random
(parts/tiny_encoders). The DiT's patch embedding and last layer are each other's reverse, its gates are open, and its
blocks are small random updates beside the residual stream: so what comes in can come out, and a LoRA on the blocks is
enough to learn a clip by heart. Does not know the demo. Given up: any use as a real model.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...parts.tiny_encoders import CLIP_NAME, LLAMA_NAME, write_tiny_encoders
from ...parts.tiny_hunyuan_vae import write_vae
from ...parts.weights import write_weights
from . import model
from .detect import HunyuanVideoConfig

DIT_NAME, VAE_NAME = "hunyuan_video_t2v_tiny.safetensors", "hunyuan_video_vae_tiny.safetensors"
DIT_CONFIG = HunyuanVideoConfig(
    dim=192, ffn_dim=384, refiner_ffn_dim=192, text_dim=64, pooled_dim=64, in_dim=16, out_dim=16, num_double_blocks=2,
    num_single_blocks=2, num_refiner_blocks=1, num_heads=3, head_dim=64, has_guidance=True,
)  # fmt: skip
GATES = {6: (2, 5), 3: (2,)}  # which of a modulation's vectors are gates


def _random(seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape, std: torch.randn(shape, generator=generator) * std


def dit_tensors(seed: int, config: HunyuanVideoConfig = DIT_CONFIG) -> dict[str, Tensor]:
    """A HunyuanVideo DiT under Tencent's names, float32, which a LoRA on its blocks can teach a clip."""
    normal, tensors = _random(seed), {}
    for name, parameter in model.build(config).named_parameters():
        shape = tuple(parameter.shape)
        if name.endswith(".bias"):
            tensors[name] = torch.zeros(shape)
        elif "norm" in name and len(shape) == 1:
            tensors[name] = torch.ones(shape)
        elif name.startswith(("txt_in", "time_in", "vector_in", "guidance_in")):
            tensors[name] = normal(*shape, std=shape[-1] ** -0.5)
        else:
            tensors[name] = normal(*shape, std=0.02)
    tensors["guidance_in.mlp.2.weight"] *= 0.1
    tensors["vector_in.out_layer.weight"] *= 0.1
    for name, tensor in tensors.items():
        parts = tensor.numel() // config.dim
        if name.endswith(("mod.linear.bias", "modulation.linear.bias")):
            for gate in GATES[parts]:
                tensor[gate * config.dim : (gate + 1) * config.dim] = 1.0
    _join_ends(tensors, config, normal)
    return tensors


def _join_ends(tensors: dict[str, Tensor], config: HunyuanVideoConfig, normal: Any) -> None:
    """Make patch embedding and last layer each other's reverse, up to gain; a constant beside a patch steadies norms.

    Of a model that takes an image's latents too, only the noisy ones count.
    """
    patch = (config.out_dim, *config.patch_size)
    values = math.prod(patch)
    axes_DP, _ = torch.linalg.qr(normal(config.dim, values, std=1.0))
    aside_D = normal(config.dim, std=1.0)
    aside_D -= aside_D.mean()
    aside_D -= axes_DP @ (axes_DP.T @ aside_D)
    token_length = 0.25 * config.dim**0.5  # of a patch of unit variance; short beside what blocks can add
    embedding = tensors["img_in.proj.weight"]
    embedding[:, : config.out_dim] = (token_length / values**0.5 * axes_DP).reshape(config.dim, *patch)
    tensors["img_in.proj.bias"] = 2.0 * token_length * aside_D / aside_D.norm()
    tensors["final_layer.linear.weight"] = (2.0 * (values / config.dim) ** 0.5) * axes_DP.T.contiguous()


def write_dit(path: Path, *, seed: int, config: HunyuanVideoConfig = DIT_CONFIG) -> None:
    """Write such a DiT; its head size stands in the metadata."""
    metadata = {"format": "pt", "head_dim": str(config.head_dim)}
    write_weights(path, dit_tensors(seed, config), metadata=metadata)


def write_tiny_models(folder: str | Path, *, seed: int = 42) -> dict[str, Path]:
    """Write all files into `folder` (made if missing); the same seed gives the same weights. Under 20 MB.

    Returns their paths by option name: "dit", "vae", "text_encoder1", "text_encoder2". Tokenizers lie inside or beside
    the encoders. Each file appears whole or not at all.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = _paths(folder)
    write_dit(paths["dit"], seed=seed)
    write_vae(paths["vae"], seed=seed + 1)
    write_tiny_encoders(
        folder, seed=seed + 2, text_width=DIT_CONFIG.text_dim, pooled_width=DIT_CONFIG.pooled_dim, image_width=None
    )
    return paths


def tiny_model_options(folder: str | Path) -> dict[str, dict[str, Any]]:
    """What the job files of each verb must say to use the models in `folder`."""
    paths = {name: str(path) for name, path in _paths(Path(folder)).items()}
    texts = {name: paths[name] for name in ("text_encoder1", "text_encoder2")}
    return {
        "cache-latents": {"vae": paths["vae"]},
        "cache-text": texts,
        "train": {"dit": paths["dit"]},
        "generate": paths,
    }


def _paths(folder: Path) -> dict[str, Path]:
    names = {"dit": DIT_NAME, "vae": VAE_NAME, "text_encoder1": LLAMA_NAME, "text_encoder2": CLIP_NAME}
    return {key: folder / name for key, name in names.items()}
