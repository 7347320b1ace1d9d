"""The VAE of Pocket HunyuanVideo and Pocket FramePack: sizes, weights before training, file.

It is HunyuanVideo's own architecture, only narrower, and loads like any other such file; how many groups its norms have
stands in the metadata. DiTs of this family get latents times a published constant, with no tables. So what makes the
latents normal (no mean, deviation 1 after that constant) is worked into the 1x1 convolutions around them when the file
is written. Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.families.hunyuan_video import vae as family_vae
from engine.parts import hunyuan_vae
from engine.parts.hunyuan_vae_network import HunyuanVae
from engine.parts.hunyuan_vae_public import LATENT_CHANNELS, public_shapes
from engine.parts.pocket import HUNYUAN_VAE
from engine.parts.weights import write_weights

VAE_NAME = HUNYUAN_VAE["vae"]
GROUPS = 4
CHANNELS, SCALE = LATENT_CHANNELS, hunyuan_vae.SCALING_FACTOR
_AFTER_SILU, _GAIN_AFTER_SILU = ("conv1.conv.weight", "conv2.conv.weight", "conv_out.conv.weight"), 2.0
_LOG_VARIANCE = -6.0


def new_vae(widths: Sequence[int]) -> HunyuanVae:
    """An untrained VAE on the CPU. `widths`: channels at full, half, quarter and eighth size.

    Convolutions behind a SiLU, which lets little more than half through, begin larger. The posterior begins narrow, so
    that the decoder sees latents at first and not their noise, and pictures begin grey.
    """
    vae = hunyuan_vae.build(public_shapes(tuple(widths)), groups=GROUPS, device="cpu").requires_grad_(True)
    for name, weight in vae.named_parameters():
        if weight.ndim == 1:
            (nn.init.ones_ if name.endswith("weight") else nn.init.zeros_)(weight)
        else:
            gain = _GAIN_AFTER_SILU if name.endswith(_AFTER_SILU) else 1.0
            nn.init.normal_(weight, std=gain * weight[0].numel() ** -0.5)
    with torch.no_grad():
        vae.quant_conv.bias[CHANNELS:] = _LOG_VARIANCE
        vae.quant_conv.weight[CHANNELS:] *= 0.1
        vae.decoder.conv_out.conv.weight *= 0.1
    return vae


def normal(tensors: Mapping[str, Tensor], *, mean: Sequence[float], std: Sequence[float]) -> dict[str, Tensor]:
    """The same VAE with other latents, float32: what had this mean and deviation (after SCALE) has 0 and 1."""
    made = {name: tensor.float() for name, tensor in tensors.items()}
    device = made["quant_conv.bias"].device
    std_C, mean_C = torch.tensor(std, device=device), torch.tensor(mean, device=device) / SCALE
    own, spread = slice(0, CHANNELS), slice(CHANNELS, 2 * CHANNELS)
    weight, bias = made["quant_conv.weight"].clone(), made["quant_conv.bias"].clone()
    weight[own] /= std_C[:, None, None, None, None]
    bias[own] = (bias[own] - mean_C) / std_C
    bias[spread] -= 2.0 * std_C.log()
    post = made["post_quant_conv.weight"]
    made["post_quant_conv.bias"] = made["post_quant_conv.bias"] + post.flatten(1) @ mean_C
    made["post_quant_conv.weight"] = post * std_C[None, :, None, None, None]
    made["quant_conv.weight"], made["quant_conv.bias"] = weight, bias
    return made


def write_vae(path: Path, tensors: Mapping[str, Tensor], *, mean: Sequence[float], std: Sequence[float]) -> None:
    """The VAE in fp16 with normal latents. `mean`, `std`: of each channel after SCALE, as it is now."""
    stored = {name: tensor.half() for name, tensor in normal(tensors, mean=mean, std=std).items()}
    write_weights(path, stored, metadata={"format": "pt", "norm_num_groups": str(GROUPS)})


def read_vae(path: Path) -> HunyuanVae:
    """A trained VAE, to train on: float32, on the CPU."""
    return family_vae.load(path, device="cpu", dtype=torch.float32).requires_grad_(True)
