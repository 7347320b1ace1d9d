"""The Wan VAE on whole clips at once, with gradients: what training needs and the engine does not do.

The engine goes through a clip chunk by chunk, writes into memory of its own and uses kernels without gradients. Here
the same modules run on all frames together, in ordinary operations. What a chunk remembers becomes padding in front:
a causal convolution sees two black frames before the first; halving in time leaves the first frame alone and then takes
windows of three frames that share their ends; doubling leaves the first frame alone and sees black before the second.
The results are those of the engine's `encode` and `decode` (tests/zoo).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.families.wan.vae import Coder, Downsample, FrameAttention, ResidualBlock, Upsample, WanVae
from engine.parts.causal_conv import CausalConv3d, batch_to_frames, frames_to_batch

Activate = Callable[[Tensor, Tensor], Tensor]
_LEAST_SQUARE = 1e-12
_COMPILED_SHAPES = 64


def norm_silu(x_BCFHW: Tensor, gain_C111: Tensor) -> Tensor:
    """silu(x / rms(x) * gain), the root mean square being over the channels; x's dtype, float32 inside."""
    wide = x_BCFHW.float()
    scaled = wide * torch.rsqrt(wide.square().mean(dim=1, keepdim=True) + _LEAST_SQUARE) * gain_C111
    return functional.silu(scaled).to(x_BCFHW.dtype)


def activation(compiled: bool, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """`norm_silu`, as one kernel where PyTorch can compile it here."""
    if not compiled:
        return norm_silu
    torch._dynamo.config.cache_size_limit = _COMPILED_SHAPES
    made = torch.compile(norm_silu, dynamic=False)
    try:
        probe = torch.ones(1, 8, 2, 4, 4, device=device, requires_grad=True)
        made(probe, torch.ones(8, 1, 1, 1, device=device, requires_grad=True)).sum().backward()
    except Exception as error:  # compilers fail in many ways, and the results are the same without one
        warnings.warn(f"PyTorch cannot compile here, so training is slower: {error}", stacklevel=2)
        return norm_silu
    return made


def mixed_precision(device: torch.device) -> AbstractContextManager:
    """bfloat16 products on a GPU; float32 on a CPU, where it is faster."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


class WholeClip(nn.Module):
    """A VAE's encoder and decoder for whole clips. `activate` is `norm_silu`, or a compiled one."""

    def __init__(self, vae: WanVae, *, activate: Activate = norm_silu) -> None:
        super().__init__()
        self.vae, self.activate = vae, activate

    def encode(self, clip_BCFHW: Tensor) -> tuple[Tensor, Tensor]:
        """RGB in -1..1, 4n + 1 frames, to the posterior's mean and log variance, BCTHW, not normalised."""
        mean_BCTHW, log_variance_BCTHW = self.vae.conv1(self._coder(self.vae.encoder, clip_BCFHW)).chunk(2, dim=1)
        return mean_BCTHW, log_variance_BCTHW

    def decode(self, latents_BCTHW: Tensor) -> Tensor:
        """The reverse, from latents that are not normalised. Not limited to -1..1."""
        return self._coder(self.vae.decoder, self.vae.conv2(latents_BCTHW))

    def _coder(self, coder: Coder, x_BCFHW: Tensor) -> Tensor:
        x_BCFHW = causal(coder.conv1, x_BCFHW)
        for layer in coder.layers():
            x_BCFHW = self._layer(layer, x_BCFHW)
        return causal(coder.head["2"], self.activate(x_BCFHW, coder.head["0"].gamma))

    def _layer(self, layer: nn.Module, x_BCFHW: Tensor) -> Tensor:
        if isinstance(layer, ResidualBlock):
            first_norm, first_conv, second_norm, second_conv = layer.residual.values()
            h_BCFHW = causal(first_conv, self.activate(x_BCFHW, first_norm.gamma))
            h_BCFHW = causal(second_conv, self.activate(h_BCFHW, second_norm.gamma))
            return h_BCFHW + layer.shortcut(x_BCFHW)
        if isinstance(layer, Downsample):
            return downsample(layer, x_BCFHW)
        if isinstance(layer, Upsample):
            return upsample(layer, x_BCFHW)
        return frame_attention(layer, x_BCFHW)


def causal(conv: CausalConv3d, x_BCFHW: Tensor) -> Tensor:
    """The convolution with black frames before the first."""
    padded_BCFHW = functional.pad(x_BCFHW, (0, 0, 0, 0, conv.kernel_size[0] - 1, 0))
    weight_OIFHW = conv.weight[:, : padded_BCFHW.shape[1]]  # of a file that was loaded there may be zeros behind them
    return functional.conv3d(padded_BCFHW, weight_OIFHW, conv.bias, padding=conv.padding)


def downsample(layer: Downsample, x_BCFHW: Tensor) -> Tensor:
    padded_NCHW = functional.pad(frames_to_batch(x_BCFHW), (0, 1, 0, 1))
    x_BCFHW = batch_to_frames(layer.resample["1"](padded_NCHW), batch=x_BCFHW.shape[0])
    if layer.time_conv is None or x_BCFHW.shape[2] == 1:
        return x_BCFHW
    return torch.cat([x_BCFHW[:, :, :1], layer.time_conv(x_BCFHW)], dim=2)


def upsample(layer: Upsample, x_BCFHW: Tensor) -> Tensor:
    batch = x_BCFHW.shape[0]
    if layer.time_conv is not None and x_BCFHW.shape[2] > 1:
        pairs_BCFHW = causal(layer.time_conv, x_BCFHW[:, :, 1:])
        later_BCFHW = torch.stack(pairs_BCFHW.chunk(2, dim=1), dim=3).flatten(2, 3)
        x_BCFHW = torch.cat([x_BCFHW[:, :, :1], later_BCFHW], dim=2)
    x_NCHW = functional.interpolate(frames_to_batch(x_BCFHW), scale_factor=2, mode="nearest-exact")
    return batch_to_frames(layer.resample["1"](x_NCHW), batch=batch)


def frame_attention(layer: FrameAttention, x_BCFHW: Tensor) -> Tensor:
    """Self-attention with one head over the pixels of each frame."""
    x_NCHW = frames_to_batch(x_BCFHW)
    wide = x_NCHW.float()
    normed_NCHW = wide * torch.rsqrt(wide.square().mean(dim=1, keepdim=True) + _LEAST_SQUARE) * layer.norm.gamma
    qkv_N1LC = layer.to_qkv(normed_NCHW.to(x_NCHW.dtype)).flatten(2).transpose(1, 2).unsqueeze(1)
    mixed_N1LC = functional.scaled_dot_product_attention(*(part.contiguous() for part in qkv_N1LC.chunk(3, dim=-1)))
    mixed_NCHW = mixed_N1LC.squeeze(1).transpose(1, 2).reshape(x_NCHW.shape)
    return batch_to_frames(x_NCHW + layer.proj(mixed_NCHW), batch=x_BCFHW.shape[0])
