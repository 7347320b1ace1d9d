"""The network of HunyuanVideo's VAE (AutoencoderKLCausal3D): encoder and decoder with causal 3D convolutions.

Before the first frame a convolution sees that frame again (replicate padding), and the attention in the middle sees no
later frames. Norms, however, take their statistics over all frames of a clip, so a clip cannot be processed chunk by
chunk with the same result; tiles (hunyuan_vae.py) are the approximation that the model's authors chose.

What can be done exactly is done here: a convolution's input is made a few frames at a time. So the normed, activated,
upsampled and padded versions of a large clip never exist in full, only the results of convolutions do, and no tensor
gets too long for kernels that index with 32 bits. On CUDA features are channels-last, kernels do everything between two
convolutions in two passes (ops/norm_pad.py), and upsamplers convolve the clip before doubling it. Module names are the
original checkpoint's; sizes come from the checkpoint's shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..ops import norm_pad
from ..ops.attention import attention
from ..ops.convolution import conv3d
from .causal_conv import batch_to_frames, empty_like_order, frames_to_batch
from .doubled_convolution import doubled_convolution

SLICE_ELEMENTS = 1 << 25
"""A convolution's input is made in slices of about this many numbers: 64 MiB in 16 bits."""

NORM_EPS = 1e-6
TIME_LEVELS = 2  # the last two resamplers of an encoder or a decoder halve or double the frames too

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Frames:
    """A clip that is made on demand.

    `make(start, end, edge)`: frames start … end - 1 with `edge` more pixels on each side, which repeat the outermost,
    [B, C, end - start, H + 2 edge, W + 2 edge]; frames before the first repeat it.
    """

    count: int
    elements: int  # numbers in one frame of the batch
    make: Callable[[int, int, int], Tensor]

    @property
    def at_once(self) -> int:
        return max(1, SLICE_ELEMENTS // self.elements)


def frames_of(x_BCFHW: Tensor) -> Frames:
    """The Frames of a clip that exists already."""
    count = x_BCFHW.shape[2]
    if norm_pad.can_fuse(x_BCFHW):

        def make(start: int, end: int, edge: int) -> Tensor:
            return norm_pad.padded(x_BCFHW, start, end, edge=edge)
    else:

        def make(start: int, end: int, edge: int) -> Tensor:
            return _repeat_edges(x_BCFHW[:, :, max(start, 0) : end], start, edge)

    return Frames(count, x_BCFHW.numel() // count, make)


def _repeat_edges(x_BCFHW: Tensor, start: int, edge: int) -> Tensor:
    """`Frames.make`, given the frames from max(start, 0) on."""
    if not edge and start >= 0:
        return x_BCFHW
    return functional.pad(x_BCFHW, (edge, edge, edge, edge, max(-start, 0), 0), mode="replicate")


class CausalConv3d(nn.Module):
    """A 3D convolution, "same" in height and width; a frame sees itself and the ones before, edges are repeated."""

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel: int = 3, stride: tuple[int, int, int] = (1, 1, 1)
    ):
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride)

    def forward(self, frames: Frames, *, with_bias: bool = True) -> Tensor:
        """`with_bias=False`: the consumer of the result adds the bias, which saves a pass over it."""
        stride = self.conv.stride[0]
        count = (frames.count - 1) // stride + 1
        step = max(1, frames.at_once // stride)
        bias_C = self.conv.bias if with_bias else None
        beginning = self._convolve(frames, 0, min(step, count), bias_C)
        if step >= count:
            return beginning
        out = empty_like_order(beginning, (*beginning.shape[:2], count, *beginning.shape[3:]))
        out[:, :, :step] = beginning
        for start in range(step, count, step):
            end = min(start + step, count)
            out[:, :, start:end] = self._convolve(frames, start, end, bias_C)
        return out

    def _convolve(self, frames: Frames, start: int, end: int, bias_C: Tensor | None) -> Tensor:
        """Output frames start … end - 1."""
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        x_BCFHW = frames.make(start * stride - (kernel - 1), (end - 1) * stride + 1, kernel // 2)
        return conv3d(x_BCFHW, self.conv.weight, bias_C, stride=self.conv.stride)


class NormSilu(nn.GroupNorm):
    """Group norm over a whole clip, then SiLU, applied slice by slice; the statistics are those of the whole clip."""

    def __init__(self, channels: int, *, groups: int) -> None:
        super().__init__(groups, channels, eps=NORM_EPS)

    def frames(self, x_BCFHW: Tensor, *, offset_C: Tensor | None = None) -> Frames:
        """The clip plus `offset_C`, normed and activated, on demand."""
        fused = norm_pad.can_fuse(x_BCFHW)
        if offset_C is not None and not fused:
            x_BCFHW = x_BCFHW + offset_C.view(-1, 1, 1, 1)
        given = frames_of(x_BCFHW)
        if fused:
            affine = norm_pad.group_norm_affine(
                x_BCFHW, self.weight, self.bias, groups=self.num_groups, eps=self.eps, offset_C=offset_C
            )

            def make(start: int, end: int, edge: int) -> Tensor:
                return norm_pad.padded(x_BCFHW, start, end, edge=edge, affine=affine)
        elif given.at_once >= given.count:

            def make(start: int, end: int, edge: int) -> Tensor:
                return _repeat_edges(
                    functional.silu(self(x_BCFHW), inplace=True)[:, :, max(start, 0) : end], start, edge
                )
        else:
            scale_BC111, shift_BC111 = self._statistics(x_BCFHW, given.at_once)

            def make(start: int, end: int, edge: int) -> Tensor:
                normed = torch.addcmul(shift_BC111, x_BCFHW[:, :, max(start, 0) : end], scale_BC111)
                return _repeat_edges(functional.silu(normed, inplace=True).to(x_BCFHW.dtype), start, edge)

        return Frames(given.count, given.elements, make)

    def _statistics(self, x_BCFHW: Tensor, frames_at_once: int) -> tuple[Tensor, Tensor]:
        """(scale, shift) such that the norm is x * scale + shift, float32. Variances of slices are combined without
        cancellation."""
        batch, channels, count = x_BCFHW.shape[:3]
        slices = x_BCFHW.split(frames_at_once, dim=2)
        found = [torch.var_mean(s.float().reshape(batch, self.num_groups, -1), dim=2, correction=0) for s in slices]
        variances_SBG, means_SBG = (torch.stack(values) for values in zip(*found, strict=True))
        shares_S11 = means_SBG.new_tensor([s.shape[2] / count for s in slices]).view(-1, 1, 1)
        mean_BG = (shares_S11 * means_SBG).sum(0)
        variance_BG = (shares_S11 * (variances_SBG + (means_SBG - mean_BG).square())).sum(0)
        repeats = channels // self.num_groups
        inverse_BC = torch.rsqrt(variance_BG + self.eps).repeat_interleave(repeats, dim=1)
        scale_BC = inverse_BC * self.weight.float()
        shift_BC = self.bias.float() - mean_BG.repeat_interleave(repeats, dim=1) * scale_BC
        return scale_BC[..., None, None, None], shift_BC[..., None, None, None]


class ResnetBlock(nn.Module):
    """Norm, SiLU, convolution, twice, beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, *, groups: int) -> None:
        super().__init__()
        self.norm1 = NormSilu(in_channels, groups=groups)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.norm2 = NormSilu(out_channels, groups=groups)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        changes = in_channels != out_channels
        self.conv_shortcut = CausalConv3d(in_channels, out_channels, kernel=1) if changes else None

    def forward(self, x_BCFHW: Tensor) -> Tensor:
        if norm_pad.can_fuse(x_BCFHW):
            return self._fused(x_BCFHW)
        h_BCFHW = self.conv1(self.norm1.frames(x_BCFHW))
        h_BCFHW = self.conv2(self.norm2.frames(h_BCFHW))
        return h_BCFHW.add_(x_BCFHW if self.conv_shortcut is None else self.conv_shortcut(frames_of(x_BCFHW)))

    def _fused(self, x_BCFHW: Tensor) -> Tensor:
        """The same in fewer passes: whatever reads a convolution's result adds its bias."""
        h_BCFHW = self.conv1(self.norm1.frames(x_BCFHW), with_bias=False)
        h_BCFHW = self.conv2(self.norm2.frames(h_BCFHW, offset_C=self.conv1.conv.bias), with_bias=False)
        bias_C = self.conv2.conv.bias
        if self.conv_shortcut is None:
            return norm_pad.add_(h_BCFHW, x_BCFHW, bias_C)
        conv = self.conv_shortcut.conv
        mixed_BFHWC = functional.linear(x_BCFHW.permute(0, 2, 3, 4, 1), conv.weight.flatten(1))
        return norm_pad.add_(h_BCFHW, mixed_BFHWC.permute(0, 4, 1, 2, 3), bias_C.float() + conv.bias.float())


class FrameCausalAttention(nn.Module):
    """Attention with one head; the pixels of a frame look at those of their own and of earlier frames.

    Frame by frame with the keys so far, which needs no mask: a mask over all pixels of a clip would be larger than
    everything else together.
    """

    def __init__(self, channels: int, *, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=NORM_EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x_BCFHW: Tensor) -> Tensor:
        pixels = x_BCFHW.shape[3] * x_BCFHW.shape[4]
        tokens_BLC = self.group_norm(x_BCFHW).flatten(2).transpose(1, 2)
        q, k, v = (layer(tokens_BLC).unsqueeze(2) for layer in (self.to_q, self.to_k, self.to_v))
        mixed = [
            attention(q[:, end - pixels : end], k[:, :end], v[:, :end]) for end in range(pixels, q.shape[1] + 1, pixels)
        ]
        out_BLC = self.to_out[0](torch.cat(mixed, dim=1).squeeze(2))
        return x_BCFHW + out_BLC.transpose(1, 2).reshape(x_BCFHW.shape)


class Downsample(nn.Module):
    """Halve the height and width; with `in_time` n frames become (n + 1) // 2."""

    def __init__(self, channels: int, *, in_time: bool) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, stride=(2 if in_time else 1, 2, 2))

    def forward(self, x_BCFHW: Tensor) -> Tensor:
        return self.conv(frames_of(x_BCFHW))


class Upsample(nn.Module):
    """Double the height and width by repeating; with `in_time` every frame but the first is repeated too."""

    def __init__(self, channels: int, *, in_time: bool) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels)
        self.in_time = in_time

    def forward(self, x_BCFHW: Tensor) -> Tensor:
        if norm_pad.can_fuse(x_BCFHW):
            conv = self.conv.conv
            return doubled_convolution(
                frames_of(x_BCFHW), conv.weight, conv.bias, in_time=self.in_time, elements=SLICE_ELEMENTS
            )
        batch, _, count = x_BCFHW.shape[:3]

        def make(start: int, end: int, edge: int) -> Tensor:
            first = max(start, 0)
            if self.in_time:  # 0, 1 1, 2 2, …
                part_BCFHW = x_BCFHW[:, :, (torch.arange(first, end, device=x_BCFHW.device) + 1) // 2]
            else:
                part_BCFHW = x_BCFHW[:, :, first:end]
            large = functional.interpolate(frames_to_batch(part_BCFHW), scale_factor=2, mode="nearest")
            return _repeat_edges(batch_to_frames(large, batch=batch), start, edge)

        elements = 4 * x_BCFHW.numel() // count
        return self.conv(Frames(2 * count - 1 if self.in_time else count, elements, make))


class Block(nn.Module):
    """Residual blocks with attention between the first two (the middle), or followed by a resampler (a level)."""

    def __init__(self, shapes: Shapes, prefix: str, *, groups: int, resamplers: dict[str, bool]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(*_channels(shapes, f"{prefix}.resnets.{i}.conv1.conv.weight"), groups=groups)
            for i in range(_count(shapes, f"{prefix}.resnets"))
        )
        self.attentions = nn.ModuleList(
            FrameCausalAttention(shapes[f"{prefix}.attentions.{i}.to_q.weight"][0], groups=groups)
            for i in range(_count(shapes, f"{prefix}.attentions"))
        )
        for name, kind in (("downsamplers", Downsample), ("upsamplers", Upsample)):
            weight = f"{prefix}.{name}.0.conv.conv.weight"
            if weight in shapes:
                in_time = resamplers[weight]
                self.add_module(name, nn.ModuleList([kind(_channels(shapes, weight)[0], in_time=in_time)]))

    def layers(self) -> Iterator[nn.Module]:
        """The layers in the order in which a clip goes through them."""
        for number, resnet in enumerate(self.resnets):
            if 0 < number <= len(self.attentions):
                yield self.attentions[number - 1]
            yield resnet
        for name in ("downsamplers", "upsamplers"):
            if hasattr(self, name):
                yield getattr(self, name)[0]


class Coder(nn.Module):
    """The encoder (levels, then middle) or the decoder (middle, then levels)."""

    def __init__(self, shapes: Shapes, side: str, *, groups: int) -> None:
        super().__init__()
        levels = "down_blocks" if side == "encoder" else "up_blocks"
        end = "samplers.0.conv.conv.weight"
        resampling = sorted(name for name in shapes if name.startswith(f"{side}.") and name.endswith(end))
        resamplers = {name: place >= len(resampling) - TIME_LEVELS for place, name in enumerate(resampling)}
        self.conv_in = CausalConv3d(*_channels(shapes, f"{side}.conv_in.conv.weight"))
        blocks = [
            Block(shapes, f"{side}.{levels}.{i}", groups=groups, resamplers=resamplers)
            for i in range(_count(shapes, f"{side}.{levels}"))
        ]
        self.add_module(levels, nn.ModuleList(blocks))
        self.mid_block = Block(shapes, f"{side}.mid_block", groups=groups, resamplers=resamplers)
        last, out_channels = _channels(shapes, f"{side}.conv_out.conv.weight")
        self.conv_norm_out = NormSilu(last, groups=groups)
        self.conv_out = CausalConv3d(last, out_channels)
        self._levels, self._middle_first = levels, side == "decoder"

    def blocks(self) -> list[nn.Module]:
        """Levels and middle in the order in which a clip goes through them."""
        levels = self.get_submodule(self._levels).children()
        return [self.mid_block, *levels] if self._middle_first else [*levels, self.mid_block]

    def forward(self, x_BCFHW: Tensor) -> Tensor:
        if self.conv_in.conv.weight.is_contiguous(memory_format=torch.channels_last_3d):
            x_BCFHW = x_BCFHW.contiguous(memory_format=torch.channels_last_3d)
        x_BCFHW = self.conv_in(frames_of(x_BCFHW))
        for block in self.blocks():
            for layer in block.layers():  # not in a method of the block, which would keep its input alive
                x_BCFHW = layer(x_BCFHW)
        return self.conv_out(self.conv_norm_out.frames(x_BCFHW))


class HunyuanVae(nn.Module):
    """Both coders and the 1x1 convolutions between them and the latents. Use hunyuan_vae's functions, not `forward`.

    `groups`: of the norms, which shapes do not show. Raises KeyError with the name that `shapes` lacks.
    """

    def __init__(self, shapes: Shapes, *, groups: int = 32) -> None:
        super().__init__()
        self.encoder = Coder(shapes, "encoder", groups=groups)
        self.decoder = Coder(shapes, "decoder", groups=groups)
        self.quant_conv = nn.Conv3d(*_channels(shapes, "quant_conv.weight"), 1)
        self.post_quant_conv = nn.Conv3d(*_channels(shapes, "post_quant_conv.weight"), 1)
        self.latent_channels = self.post_quant_conv.in_channels

    @property
    def device(self) -> torch.device:
        return self.post_quant_conv.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.post_quant_conv.weight.dtype

    def to_moments(self, x_BCFHW: Tensor) -> Tensor:
        """RGB -1..1 to mean and log variance, stacked along the channels."""
        return self.quant_conv(self.encoder(x_BCFHW))

    def to_pixels(self, z_BCTHW: Tensor) -> Tensor:
        """Latents in the VAE's own scale to RGB, about -1..1."""
        return self.decoder(self.post_quant_conv(z_BCTHW))


def _channels(shapes: Shapes, name: str) -> tuple[int, int]:
    """(in, out) of the convolution weight `name`."""
    return shapes[name][1], shapes[name][0]


def _count(shapes: Shapes, prefix: str) -> int:
    """How many numbered parts `prefix` has."""
    start = len(prefix) + 1
    parts = (name[start:].split(".")[0] for name in shapes if name.startswith(f"{prefix}."))
    return 1 + max((int(part) for part in parts if part.isdecimal()), default=-1)
