"""HunyuanVideo's VAE as `train_vae` takes it, and clips to its latents."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from engine.families.hunyuan_video import vae as family_vae
from engine.parts.hunyuan_vae_network import HunyuanVae

from .latents import in_batches
from .pocket_hunyuan_vae import SCALE
from .train_vae import Kind
from .whole_clip import mixed_precision
from .whole_clip_hunyuan import Between, WholeHunyuanClip, doubled, norm_silu, repeated_edges

_COMPILED_SHAPES = 64


def encode_all(vae: HunyuanVae, clips_NFHWC: np.ndarray, *, compiled: bool) -> Tensor:
    """Latents as the engine's `encode` makes them, bf16 on the VAE's device, [N, C, T, H, W]."""
    network = _whole(vae.float(), compiled)

    def encode(clip_BCFHW: Tensor) -> Tensor:
        with mixed_precision(vae.device):
            mean_BCTHW, _ = network.encode(clip_BCFHW)
        return SCALE * mean_BCTHW.float()

    return in_batches(clips_NFHWC, encode, vae.device, name="encode")


def compiled_between(device: torch.device) -> Between:
    """What stands between convolutions as kernels of its own, where PyTorch can compile it here."""
    torch._dynamo.config.cache_size_limit = _COMPILED_SHAPES
    made = Between(*(torch.compile(function, dynamic=False) for function in (repeated_edges, norm_silu, doubled)))
    try:
        probe = torch.ones(1, 8, 2, 4, 4, device=device, requires_grad=True)
        weight = torch.ones(8, device=device, requires_grad=True)
        made.norm_silu(probe, weight, weight, 4).sum().backward()
    except Exception as error:  # compilers fail in many ways, and the results are the same without one
        warnings.warn(f"PyTorch cannot compile here, so training is slower: {error}", stacklevel=2)
        return Between()
    return made


def _whole(vae: HunyuanVae, compiled: bool) -> WholeHunyuanClip:
    return WholeHunyuanClip(vae, between=compiled_between(vae.device) if compiled else None)


def _is_inner(name: str, weight: Tensor) -> bool:
    outer = ("conv_in.conv.weight", "conv_out.conv.weight", "quant_conv.weight")
    return weight.ndim >= 2 and not name.endswith(outer)


HUNYUAN = Kind(
    whole=_whole,
    encode=family_vae.encode,
    decode=family_vae.decode,
    encoding=("encoder", "quant_conv"),
    is_inner=_is_inner,
)
