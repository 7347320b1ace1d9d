"""HunyuanVideo's VAE on whole clips at once, with gradients: what training needs and the engine does not do.

The engine makes the input of a convolution a few frames at a time, writes in place, and turns gradients off. Here the
same modules run on all frames together, in ordinary operations. What stands between two convolutions (norm, SiLU,
doubling, repeated edges) is a function of its own, so that it can be compiled to one kernel: these tensors are large
and their channels few. The results are those of the engine's `encode` and `decode` (tests/zoo).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.parts.hunyuan_vae_network import (
    NORM_EPS,
    CausalConv3d,
    Coder,
    Downsample,
    FrameCausalAttention,
    HunyuanVae,
    NormSilu,
    ResnetBlock,
)

_PAST = 2  # frames that a convolution sees before the one it makes


def repeated_edges(x_BCFHW: Tensor) -> Tensor:
    """What a convolution of kernel 3 takes: the first frame twice more, and each border once more. Channels last."""
    first_BC1HW = x_BCFHW[:, :, :1]
    x_BCFHW = torch.cat([*[first_BC1HW] * _PAST, x_BCFHW], dim=2)
    x_BCFHW = torch.cat([x_BCFHW[:, :, :, :1], x_BCFHW, x_BCFHW[:, :, :, -1:]], dim=3)
    x_BCFHW = torch.cat([x_BCFHW[..., :1], x_BCFHW, x_BCFHW[..., -1:]], dim=4)
    return x_BCFHW.contiguous(memory_format=torch.channels_last_3d)


def norm_silu(x_BCFHW: Tensor, weight_C: Tensor, bias_C: Tensor, groups: int) -> Tensor:
    """silu of the group norm over a whole clip, its edges repeated; x's dtype, float32 inside.

    Channels are averaged before groups, since memory has channels last.
    """
    wide = x_BCFHW.float()
    mean_BG, square_BG = (
        moment.mean(dim=(2, 3, 4)).unflatten(1, (groups, -1)).mean(dim=2) for moment in (wide, wide.square())
    )
    inverse_BG = torch.rsqrt((square_BG - mean_BG.square()).clamp_min(0.0) + NORM_EPS)
    each = len(weight_C) // groups
    mean_BC, inverse_BC = (value.unsqueeze(2).expand(-1, -1, each).flatten(1) for value in (mean_BG, inverse_BG))
    scale_BC = inverse_BC * weight_C
    shift_BC = bias_C - mean_BC * scale_BC
    normed_BCFHW = wide * scale_BC[..., None, None, None] + shift_BC[..., None, None, None]
    return repeated_edges(functional.silu(normed_BCFHW).to(x_BCFHW.dtype))


def doubled(x_BCFHW: Tensor, in_time: bool) -> Tensor:
    """Twice the height and width by repeating, and of every frame but the first a second one; edges repeated."""
    if in_time:
        later_BCFHW = x_BCFHW[:, :, 1:].unsqueeze(3).expand(-1, -1, -1, 2, -1, -1).flatten(2, 3)
        x_BCFHW = torch.cat([x_BCFHW[:, :, :1], later_BCFHW], dim=2)
    x_BCFHW = x_BCFHW[:, :, :, :, None, :, None].expand(-1, -1, -1, -1, 2, -1, 2).flatten(3, 4).flatten(4, 5)
    return repeated_edges(x_BCFHW)


@dataclass(frozen=True)
class Between:
    """What stands between two convolutions: plain functions, or compiled ones."""

    repeated_edges: Callable[[Tensor], Tensor] = repeated_edges
    norm_silu: Callable[[Tensor, Tensor, Tensor, int], Tensor] = norm_silu
    doubled: Callable[[Tensor, bool], Tensor] = doubled


class WholeHunyuanClip(nn.Module):
    """A VAE's encoder and decoder for whole clips."""

    def __init__(self, vae: HunyuanVae, *, between: Between | None = None) -> None:
        super().__init__()
        self.vae, self.between = vae, between or Between()

    def encode(self, clip_BCFHW: Tensor) -> tuple[Tensor, Tensor]:
        """RGB in -1..1, 4n + 1 frames, to the posterior's mean and log variance, BCTHW, in the VAE's own scale."""
        mean_BCTHW, log_variance_BCTHW = self.vae.quant_conv(self._coder(self.vae.encoder, clip_BCFHW)).chunk(2, dim=1)
        return mean_BCTHW, log_variance_BCTHW

    def decode(self, latents_BCTHW: Tensor) -> Tensor:
        """The reverse, from latents in the VAE's own scale. Not limited to -1..1."""
        return self._coder(self.vae.decoder, self.vae.post_quant_conv(latents_BCTHW))

    def _coder(self, coder: Coder, x_BCFHW: Tensor) -> Tensor:
        x_BCFHW = coder.conv_in.conv(self.between.repeated_edges(x_BCFHW))
        for block in coder.blocks():
            for layer in block.layers():
                x_BCFHW = self._layer(layer, x_BCFHW)
        return self._activated(coder.conv_norm_out, coder.conv_out, x_BCFHW)

    def _layer(self, layer: nn.Module, x_BCFHW: Tensor) -> Tensor:
        if isinstance(layer, ResnetBlock):
            h_BCFHW = self._activated(layer.norm1, layer.conv1, x_BCFHW)
            h_BCFHW = self._activated(layer.norm2, layer.conv2, h_BCFHW)
            return h_BCFHW + (x_BCFHW if layer.conv_shortcut is None else layer.conv_shortcut.conv(x_BCFHW))
        if isinstance(layer, FrameCausalAttention):
            return frame_causal_attention(layer, x_BCFHW)
        if isinstance(layer, Downsample):
            return layer.conv.conv(self.between.repeated_edges(x_BCFHW))
        return layer.conv.conv(self.between.doubled(x_BCFHW, layer.in_time))

    def _activated(self, norm: NormSilu, convolution: CausalConv3d, x_BCFHW: Tensor) -> Tensor:
        return convolution.conv(self.between.norm_silu(x_BCFHW, norm.weight, norm.bias, norm.num_groups))


def frame_causal_attention(layer: FrameCausalAttention, x_BCFHW: Tensor) -> Tensor:
    """Self-attention with one head; the pixels of a frame look at those of their own and of earlier frames."""
    frames, pixels = x_BCFHW.shape[2], x_BCFHW.shape[3] * x_BCFHW.shape[4]
    tokens_BLC = layer.group_norm(x_BCFHW).to(x_BCFHW.dtype).flatten(2).transpose(1, 2)
    q, k, v = (part(tokens_BLC).unsqueeze(1) for part in (layer.to_q, layer.to_k, layer.to_v))
    frame_L = torch.arange(frames * pixels, device=x_BCFHW.device) // pixels
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=frame_L[:, None] >= frame_L)
    out_BLC = layer.to_out[0](mixed.squeeze(1))
    return x_BCFHW + out_BLC.transpose(1, 2).reshape(x_BCFHW.shape)
