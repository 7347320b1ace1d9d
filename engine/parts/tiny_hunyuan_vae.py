"""A small HunyuanVideo VAE, under the original names, that reproduces a picture: for demos and tests.

Nothing is trained. Three of its sixteen latent channels carry the colours of 8x8 pixels and up to four frames, which
the decoder paints back smoothly; the others are random features of the clip, which the decoder ignores. Latents have
mean 0 and, times SCALING_FACTOR, deviation 1 on clips with smooth colours; the posterior is narrow.

How colours survive norms over whole clips: a norm group holds a colour, its negative, a constant and its negative. So
its mean is zero and its deviation nearly the constant's, and as silu(x) - silu(-x) = x, the difference of the first two
is the colour again. Blocks add random features to the last group only.

Does not know the demo. Given up: any use as a real VAE.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from . import hunyuan_vae, hunyuan_vae_public
from .tiny_weights import COLOUR_AXES, DrawnTensors
from .weights import write_weights

WIDTH, GROUPS, LEVELS = 16, 4, 4
CHANNELS = hunyuan_vae_public.LATENT_CHANNELS
COLOURS = 3
CLEAN = 4 * COLOURS  # channels that no block writes to
CONSTANT = 8.0
MEAN_SQUARE = 0.3  # typical for a colour in -1..1
LOG_VARIANCE = -8.0
METADATA = {"norm_num_groups": str(GROUPS)}


class _Tensors(DrawnTensors):
    """The tensors of a HunyuanVideo VAE, whose convolutions are wrapped in a module `conv`."""

    def norm(self, name: str) -> None:
        self.layer(name, torch.ones(WIDTH))

    def convolution(self, name: str, weight: Tensor, bias: Tensor | None = None) -> None:
        self.layer(f"{name}.conv", weight, bias)


def _tap(time: tuple[float, float, float], space: tuple[float, float, float]) -> Tensor:
    """A 3x3x3 kernel; time runs from the oldest to the newest frame."""
    across = torch.tensor(space)
    return torch.tensor(time).view(3, 1, 1) * torch.outer(across, across)


NEWEST = (0.0, 0.0, 1.0)
HERE = _tap(NEWEST, (0.0, 1.0, 0.0))


def _spread(matrix: Tensor, tap: Tensor) -> Tensor:
    """A convolution's weight: `matrix` [out, in] from channel to channel, the same `tap` everywhere."""
    return matrix[:, :, None, None, None] * tap


def _colour_pairs() -> Tensor:
    """[CLEAN, COLOURS]: colour j goes to the first channel of group j, its negative to the second."""
    pairs = torch.zeros(CLEAN, COLOURS)
    for colour in range(COLOURS):
        pairs[4 * colour, colour], pairs[4 * colour + 1, colour] = 1.0, -1.0
    return pairs


def _inlet(tensors: _Tensors, name: str, in_channels: int, *, strength: float) -> None:
    """The first convolution: colours from the first three channels, constants from the bias, random features."""
    weight = tensors.normal(WIDTH, in_channels, 3, 3, 3, std=strength * (27 * in_channels) ** -0.5)
    weight[:CLEAN] = 0.0
    weight[:CLEAN, :COLOURS] = _spread(_colour_pairs(), HERE)
    bias = torch.zeros(WIDTH)
    bias[2:CLEAN:4], bias[3:CLEAN:4] = CONSTANT, -CONSTANT
    tensors.convolution(name, weight, bias)


def _resnet(tensors: _Tensors, name: str, *, strength: float) -> None:
    for number in (1, 2):
        tensors.norm(f"{name}.norm{number}")
        weight = tensors.normal(WIDTH, WIDTH, 3, 3, 3, std=(27 * WIDTH) ** -0.5)
        if number == 2:
            weight[:CLEAN] = 0.0
            weight *= strength
        tensors.convolution(f"{name}.conv{number}", weight)


def _middle(tensors: _Tensors, name: str, *, strength: float) -> None:
    for number in range(2):
        _resnet(tensors, f"{name}.resnets.{number}", strength=strength)
    attention = f"{name}.attentions.0"
    tensors.norm(f"{attention}.group_norm")
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        tensors.layer(f"{attention}.{part}", tensors.normal(WIDTH, WIDTH, std=WIDTH**-0.5))
    tensors[f"{attention}.to_out.0.weight"][:CLEAN] = 0.0
    tensors[f"{attention}.to_out.0.weight"] *= strength


def _encoder(tensors: _Tensors) -> None:
    _inlet(tensors, "encoder.conv_in", 3, strength=3.0)
    half = (0.0, 0.5, 0.5)
    for level in range(LEVELS):
        block = f"encoder.down_blocks.{level}"
        _resnet(tensors, f"{block}.resnets.0", strength=0.5)
        if level < LEVELS - 1:
            kernel = _tap(half if level > 0 else NEWEST, half)
            tensors.convolution(f"{block}.downsamplers.0.conv", _spread(torch.eye(WIDTH), kernel))
    _middle(tensors, "encoder.mid_block", strength=0.5)
    tensors.norm("encoder.conv_norm_out")
    features = WIDTH - CLEAN
    weight = torch.zeros(2 * CHANNELS, WIDTH, 3, 3, 3)
    weight[:COLOURS, :CLEAN] = _spread(torch.tensor(COLOUR_AXES) @ _colour_pairs().T, HERE)
    weight[COLOURS:CHANNELS, CLEAN:] = tensors.normal(CHANNELS - COLOURS, features, 3, 3, 3, std=1.0)
    tensors.convolution("encoder.conv_out", weight)


def _decoder(tensors: _Tensors) -> None:
    _inlet(tensors, "decoder.conv_in", CHANNELS, strength=0.0)
    _middle(tensors, "decoder.mid_block", strength=0.05)
    smooth = _tap(NEWEST, (0.25, 0.5, 0.25))
    for level in range(LEVELS):
        block = f"decoder.up_blocks.{level}"
        for number in range(2):
            _resnet(tensors, f"{block}.resnets.{number}", strength=0.05)
        if level < LEVELS - 1:
            tensors.convolution(f"{block}.upsamplers.0.conv", _spread(torch.eye(WIDTH), smooth))
    tensors.norm("decoder.conv_norm_out")
    gain = math.sqrt((MEAN_SQUARE + CONSTANT**2) / 2)  # what the norm divided by
    weight = torch.zeros(3, WIDTH, 3, 3, 3)
    weight[:, :CLEAN] = _spread(gain * _colour_pairs().T, HERE)
    tensors.convolution("decoder.conv_out", weight)


def _calibration_clip(tensors: _Tensors) -> Tensor:
    """Smooth random colours with a hard-edged patch that moves, [4, 3, 17, 64, 64] RGB in -1..1."""
    coarse = tensors.normal(4, 3, 5, 4, 4, std=0.7)
    clip = functional.interpolate(coarse, size=(17, 64, 64), mode="trilinear")
    for sample in clip:
        for frame in range(17):
            sample[:, frame, 16:40, 2 * frame : 2 * frame + 20] = -sample[:, :1, :1, :1].reshape(3, 1, 1)
    return clip.clamp(-1, 1)


def _fit_latents(tensors: _Tensors, mean_C: Tensor, std_C: Tensor) -> None:
    """Set the convolutions around the latents, given mean and deviation of a clip's latents with an identity
    `quant_conv`."""
    gain_C = 1.0 / (hunyuan_vae.SCALING_FACTOR * std_C)
    weight = torch.zeros(2 * CHANNELS, 2 * CHANNELS)
    weight[range(CHANNELS), range(CHANNELS)] = gain_C
    bias = torch.cat([-mean_C * gain_C, torch.full((CHANNELS,), LOG_VARIANCE)])
    tensors.layer("quant_conv", weight[:, :, None, None, None], bias)
    normed = math.sqrt(2 / (MEAN_SQUARE + CONSTANT**2))  # a colour of 1 after the encoder's last norm
    to_rgb = torch.linalg.inv(torch.tensor(COLOUR_AXES)) / normed
    paint = torch.zeros(CHANNELS, CHANNELS)
    paint[:COLOURS, :COLOURS] = to_rgb / gain_C[:COLOURS]
    painted = torch.zeros(CHANNELS)
    painted[:COLOURS] = to_rgb @ mean_C[:COLOURS]
    tensors.layer("post_quant_conv", paint[:, :, None, None, None], painted)


def vae_tensors(seed: int) -> dict[str, Tensor]:
    """A HunyuanVideo VAE of width 16 under the original names, float32. Its norms have 4 groups (METADATA)."""
    tensors = _Tensors(seed)
    _encoder(tensors)
    _decoder(tensors)
    tensors.layer("quant_conv", torch.eye(2 * CHANNELS)[:, :, None, None, None])
    tensors.layer("post_quant_conv", torch.eye(CHANNELS)[:, :, None, None, None])
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    vae = hunyuan_vae.build(shapes, groups=GROUPS, device="cpu")
    vae.load_state_dict(tensors)
    latents_BCTHW = hunyuan_vae.encode(vae, _calibration_clip(tensors)).mean_BCTHW
    _fit_latents(tensors, latents_BCTHW.mean((0, 2, 3, 4)), latents_BCTHW.std((0, 2, 3, 4)))
    return dict(tensors)


def write_vae(path: Path, *, seed: int) -> None:
    """Write the VAE in float16, as the published one is used: half a megabyte."""
    tensors = {name: value.half() for name, value in vae_tensors(seed).items()}
    write_weights(path, tensors, metadata={"format": "pt", **METADATA})
