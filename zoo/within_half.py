"""A trained VAE of HunyuanVideo's kind so scaled that float16 can hold what flows through it.

People compute this VAE in float16, which ends at 65,504; training in bfloat16 lets the sum that residual blocks add to
grow far beyond. All who read that sum norm it first, so its scale is free: between two convolutions that it passes, it
may be any. Each such stretch gets a scale that brings its largest value to LARGEST; the results stay what they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise

import torch
from torch import Tensor, nn

from engine.parts.hunyuan_vae_network import Coder, FrameCausalAttention, HunyuanVae, ResnetBlock

LARGEST = 128.0
"""Far from both ends of float16: other clips may have values many times as large, and small ones keep their digits."""


@torch.no_grad()
def fit_half(vae: HunyuanVae, clip_BCFHW: Tensor) -> None:
    """Scale `vae` in place, by what flows for these clips (RGB in -1..1). It encodes and decodes as before."""
    largest: dict[nn.Module, float] = {}

    def look(module: nn.Module, given: object, out: Tensor) -> None:
        largest[module] = float(out.abs().max())

    coders = [vae.get_submodule(side) for side in ("encoder", "decoder")]
    with ExitStack() as hooks:
        for coder in coders:
            for layer in _layers(coder):
                hooks.callback(layer.register_forward_hook(look).remove)
        moments_BCTHW = vae.to_moments(clip_BCFHW.to(vae.device, vae.dtype))
        vae.to_pixels(moments_BCTHW.chunk(2, dim=1)[0])
    for coder in coders:
        _scale(list(_layers(coder)), largest)


def _layers(coder: Coder) -> Iterator[nn.Module]:
    """Those whose results are the sum, in order."""
    yield coder.conv_in
    for block in coder.blocks():
        yield from block.layers()


def _scale(layers: list[nn.Module], largest: dict[nn.Module, float]) -> None:
    starts = [place for place, layer in enumerate(layers) if _passes(layer) is not None]
    before = 1.0
    for start, end in pairwise([*starts, len(layers)]):
        stretch = layers[start:end]
        scale = min(1.0, LARGEST / max(largest[layer] for layer in stretch))
        passing = _passes(stretch[0])
        passing.weight.mul_(scale / before)
        passing.bias.mul_(scale)
        for layer in stretch:
            adding = _adds(layer)
            if adding is not None:
                adding.weight.mul_(scale)
                adding.bias.mul_(scale)
        before = scale


def _passes(layer: nn.Module) -> nn.Module | None:
    """The convolution that the sum itself passes in this layer."""
    if isinstance(layer, ResnetBlock):
        return None if layer.conv_shortcut is None else layer.conv_shortcut.conv
    if isinstance(layer, FrameCausalAttention):
        return None
    return getattr(layer.conv, "conv", layer.conv)  # of a resampler; or the coder's first one


def _adds(layer: nn.Module) -> nn.Module | None:
    """What makes the summand that this layer adds."""
    if isinstance(layer, ResnetBlock):
        return layer.conv2.conv
    return layer.to_out[0] if isinstance(layer, FrameCausalAttention) else None
