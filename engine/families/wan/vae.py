"""Wan2.1 VAE: clip -> latents, latents -> frames.

Frames are packed 4 (time) x 8 x 8, the first frame by itself: 4n+1 frames make n+1 latent frames. Everything runs in
chunks of 1, 4, 4, … frames with a `FrameMemory`, so memory does not grow with the clip's length. The network is read
off the checkpoint's shapes; module names are the original checkpoint's.

Does not know files' history, datasets or the DiT. Given up: sampling from the posterior (training and generation use
its mean) and training the VAE. Spatial tiling belongs around `encode` and `decode_frames`, not inside.

Normalisation: latents are (mean - MEAN) / STD with the 16-value tables published with Wan2.1, computed in float32.
musubi-tuner holds the tables in the VAE's dtype (bf16 by default); the difference is below the bf16 rounding of the
cached latents, so caches of both kinds can be mixed. A checkpoint can carry its own tables as JSON lists in the
safetensors metadata (`latents_mean`, `latents_std`, the names in diffusers' config); without them a VAE whose latents
do not have 16 channels is left unnormalised (mean 0, std 1), since no table was ever published for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...contract.errors import DataError, WeightsError
from ...ops import norm_pad
from ...ops.attention import attention
from ...ops.norm_silu import norm_silu
from ...parts.causal_conv import (
    CausalConv3d,
    FrameMemory,
    batch_to_frames,
    empty_like_order,
    fill_up_channels,
    frames_to_batch,
    lay_channels_last,
)
from ...parts.doubled_convolution import doubled_picture_convolution
from ...parts.vae_checks import check_clip, check_latents
from ...parts.weights import WeightFile, load_into, open_weights
from ..values import Clips
from . import samples
from .clip import ClipVision
from .colours import COLOURS as COLOURS
from .detect import check_role
from .keys import vae_name
from .variants import LATENT_CHANNELS, SPACE_STRIDE, TIME_STRIDE

CACHE_DTYPE = torch.bfloat16

# fmt: off
LATENT_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
               0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
LATENT_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
              3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)
# fmt: on

Shapes = Mapping[str, tuple[int, ...]]


class ChannelNorm(nn.Module):
    """Each pixel's channel vector scaled to length sqrt(channels), times a learned gain."""

    def __init__(self, gain_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(gain_shape))

    def forward(self, x_BCxHW: Tensor) -> Tensor:
        return functional.normalize(x_BCxHW, dim=1).mul_(x_BCxHW.shape[1] ** 0.5).mul_(self.gamma)

    def activate(self, x_BCFHW: Tensor, out_BCFHW: Tensor, *, offset_C: Tensor | None = None) -> None:
        """The SiLU of the norm of x + offset, into `out_BCFHW`."""
        norm_silu(x_BCFHW, self.gamma.flatten(), offset_C=offset_C, out_BCFHW=out_BCFHW)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice. The keys "0" "2" "3" "6" are the checkpoint's numbers."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.residual = nn.ModuleDict(
            {
                "0": ChannelNorm((in_channels, 1, 1, 1)),
                "2": CausalConv3d(in_channels, out_channels),
                "3": ChannelNorm((out_channels, 1, 1, 1)),
                "6": CausalConv3d(out_channels, out_channels),
            }
        )
        self.shortcut = nn.Conv3d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x_BCFHW: Tensor, memory: FrameMemory) -> Tensor:
        first_norm, first_conv, second_norm, second_conv = self.residual.values()
        if norm_pad.can_fuse(x_BCFHW):  # convolutions leave their biases to what reads their results
            activate = partial(second_norm.activate, offset_C=first_conv.bias)
            h_BCFHW = first_conv(x_BCFHW, memory, entrance=first_norm.activate, with_bias=False)
            h_BCFHW = second_conv(h_BCFHW, memory, entrance=activate, with_bias=False)
            return norm_pad.add_(h_BCFHW, self.shortcut(x_BCFHW), second_conv.bias)
        h_BCFHW = first_conv(x_BCFHW, memory, entrance=first_norm.activate)
        h_BCFHW = second_conv(h_BCFHW, memory, entrance=second_norm.activate)
        return h_BCFHW.add_(self.shortcut(x_BCFHW))


class FrameAttention(nn.Module):
    """Self-attention with one head over the pixels of each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm((channels, 1, 1))
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCFHW: Tensor, memory: FrameMemory) -> Tensor:
        x_NCHW = frames_to_batch(x_BCFHW)
        qkv_NL1C = self.to_qkv(self.norm(x_NCHW)).flatten(2).transpose(1, 2).unsqueeze(2)
        mixed_NL1C = attention(*(part.contiguous() for part in qkv_NL1C.chunk(3, dim=-1)))
        mixed_NCHW = mixed_NL1C.squeeze(2).transpose(1, 2).reshape(x_NCHW.shape)
        return batch_to_frames(x_NCHW + self.proj(mixed_NCHW), batch=x_BCFHW.shape[0])


class Downsample(nn.Module):
    """Half the height and width; with `in_time` also half the frames, except that a clip's first frame stays."""

    def __init__(self, channels: int, *, in_time: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels, 3, stride=2)})
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if in_time else None

    def forward(self, x_BCFHW: Tensor, memory: FrameMemory) -> Tensor:
        padded_NCHW = functional.pad(frames_to_batch(x_BCFHW), (0, 1, 0, 1))
        x_BCFHW = batch_to_frames(self.resample["1"](padded_NCHW), batch=x_BCFHW.shape[0])
        if self.time_conv is None:
            return x_BCFHW
        past_BCFHW = memory.recall(self, device=x_BCFHW.device)
        memory.keep(self, x_BCFHW[:, :, -1:])
        return x_BCFHW if past_BCFHW is None else self.time_conv(torch.cat([past_BCFHW, x_BCFHW], dim=2))


class Upsample(nn.Module):
    """Double the height and width, halve the channels; with `in_time` also two frames for each but the clip's first.

    The first frame does not enter the temporal convolution at all: the second one sees black before itself.
    """

    def __init__(self, in_channels: int, out_channels: int, *, in_time: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(in_channels, out_channels, 3, padding=1)})
        self.time_conv = CausalConv3d(in_channels, 2 * in_channels, (3, 1, 1)) if in_time else None

    def forward(self, x_BCFHW: Tensor, memory: FrameMemory) -> Tensor:
        batch = x_BCFHW.shape[0]
        if self.time_conv is not None and not memory.first_visit(self):
            x_BCFHW = _interleaved(self.time_conv(x_BCFHW, memory))
        x_NCHW, conv = frames_to_batch(x_BCFHW), self.resample["1"]
        if norm_pad.can_fuse(x_BCFHW):
            return batch_to_frames(doubled_picture_convolution(x_NCHW, conv.weight, conv.bias), batch=batch)
        return batch_to_frames(conv(functional.interpolate(x_NCHW, scale_factor=2, mode="nearest-exact")), batch=batch)


def _interleaved(pairs_BCFHW: Tensor) -> Tensor:
    """Frames that lie two by two in the channels, one after the other: half the channels, twice the frames."""
    batch, channels, frames, height, width = pairs_BCFHW.shape
    x_BCFHW = empty_like_order(pairs_BCFHW, (batch, channels // 2, 2 * frames, height, width))
    for place, half_BCFHW in enumerate(pairs_BCFHW.chunk(2, dim=1)):
        x_BCFHW[:, :, place::2] = half_BCFHW
    return x_BCFHW


class Coder(nn.Module):
    """The encoder or the decoder: convolution in, layers, norm, convolution out.

    The two differ in where the middle (residual, attention, residual) stands and in what their layers do to the size.
    """

    def __init__(self, shapes: Shapes, *, prefix: str, layers_name: str, middle_first: bool) -> None:
        super().__init__()
        self._order = ("middle", layers_name) if middle_first else (layers_name, "middle")
        self.conv1 = CausalConv3d(*_channels(shapes, f"{prefix}.conv1.weight"))
        for name in self._order:
            self.add_module(name, _layers(shapes, f"{prefix}.{name}"))
        last, out_channels = _channels(shapes, f"{prefix}.head.2.weight")
        self.head = nn.ModuleDict({"0": ChannelNorm((last, 1, 1, 1)), "2": CausalConv3d(last, out_channels)})

    def layers(self) -> Iterator[nn.Module]:
        """What lies between the first convolution and the head, in the order in which it runs."""
        for name in self._order:
            yield from self.get_submodule(name)

    def forward(self, x_BCFHW: Tensor, memory: FrameMemory) -> Tensor:
        if self.conv1.weight.is_contiguous(memory_format=torch.channels_last_3d):
            x_BCFHW = x_BCFHW.contiguous(memory_format=torch.channels_last_3d)
        x_BCFHW = self.conv1(x_BCFHW, memory)
        for layer in self.layers():
            x_BCFHW = layer(x_BCFHW, memory)
        return self.head["2"](x_BCFHW, memory, entrance=self.head["0"].activate)


def _channels(shapes: Shapes, name: str) -> tuple[int, int]:
    """(in, out) of the convolution weight `name`."""
    if name not in shapes:
        raise WeightsError(f"The VAE lacks {name}.", hint="Check that the --vae file is whole.")
    return shapes[name][1], shapes[name][0]


def _layers(shapes: Shapes, prefix: str) -> nn.ModuleList:
    """Layers 0, 1, … under `prefix`: what each one is follows from the names it has, its size from their shapes."""
    numbers = {int(name[len(prefix) + 1 :].split(".")[0]) for name in shapes if name.startswith(f"{prefix}.")}
    layers = nn.ModuleList()
    for number in range(max(numbers, default=-1) + 1):
        layer = f"{prefix}.{number}"
        in_time = f"{layer}.time_conv.weight" in shapes
        if f"{layer}.to_qkv.weight" in shapes:
            layers.append(FrameAttention(_channels(shapes, f"{layer}.to_qkv.weight")[0]))
        elif f"{layer}.resample.1.weight" not in shapes:
            layers.append(ResidualBlock(*_channels(shapes, f"{layer}.residual.2.weight")))
        elif prefix.startswith("encoder."):
            layers.append(Downsample(_channels(shapes, f"{layer}.resample.1.weight")[0], in_time=in_time))
        else:
            layers.append(Upsample(*_channels(shapes, f"{layer}.resample.1.weight"), in_time=in_time))
    return layers


class WanVae(nn.Module):
    """The network, with the tables that normalise its latents. Use the functions of this module, not `forward`."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.encoder = Coder(shapes, prefix="encoder", layers_name="downsamples", middle_first=False)
        self.conv1 = nn.Conv3d(*_channels(shapes, "conv1.weight"), 1)
        self.conv2 = nn.Conv3d(*_channels(shapes, "conv2.weight"), 1)
        self.decoder = Coder(shapes, prefix="decoder", layers_name="upsamples", middle_first=True)
        self.latent_channels = self.conv2.in_channels
        known = self.latent_channels == LATENT_CHANNELS
        self.latent_mean = LATENT_MEAN if known else (0.0,) * self.latent_channels
        self.latent_std = LATENT_STD if known else (1.0,) * self.latent_channels
        self.cache_on_cpu = False

    @property
    def device(self) -> torch.device:
        return self.conv2.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.conv2.weight.dtype

    def tables(self) -> tuple[Tensor, Tensor]:
        """Mean and 1 / standard deviation of the latents, float32, shaped to go with latents_BCTHW."""
        mean, std = (torch.tensor(table, device=self.device) for table in (self.latent_mean, self.latent_std))
        return mean.view(1, -1, 1, 1, 1), 1.0 / std.view(1, -1, 1, 1, 1)


def build(shapes: Shapes, *, device: torch.device | str = "meta") -> WanVae:
    """The network that tensors of these names (original layout) and shapes belong to, with undefined weights."""
    with torch.device(device):
        return WanVae(shapes).eval().requires_grad_(False)


def load(
    path: str | Path, *, device: torch.device | str, dtype: torch.dtype | None, cache_on_cpu: bool = False
) -> WanVae:
    """Load a Wan2.1 VAE of any public layout: .pth or .safetensors; original, "model."-prefixed or diffusers names.

    `dtype` None keeps the file's. `cache_on_cpu` is --vae_cache_cpu: past frames wait in main memory between chunks.
    Raises WeightsError when the file is not such a VAE or is damaged.
    """
    file = open_weights(path, role="--vae")
    check_role(file.shapes, wanted="vae", flag="--vae", source=f"--vae {file.path.name}")
    renamed = {vae_name(name): tuple(shape) for name, shape in file.shapes.items()}
    shapes = {name: shape for name, shape in renamed.items() if name is not None}
    vae = build(shapes)
    load_into(vae, file, rename=vae_name, device=device, dtype=dtype)
    if vae.device.type == "cuda":
        lay_channels_last(vae)
        if torch.version.hip is None:  # cuDNN it is that wants them
            fill_up_channels(vae)
    _read_tables(vae, file)
    vae.cache_on_cpu = cache_on_cpu
    return vae


def _read_tables(vae: WanVae, file: WeightFile) -> None:
    for key, attribute in (("latents_mean", "latent_mean"), ("latents_std", "latent_std")):
        if key not in file.metadata:
            continue
        try:
            table = tuple(float(value) for value in json.loads(file.metadata[key]))
        except (ValueError, TypeError) as error:
            raise WeightsError(f"{file.path}: the metadata key {key} is not a list of numbers ({error}).") from error
        if len(table) != vae.latent_channels:
            raise WeightsError(
                f"{file.path}: the metadata key {key} has {len(table)} values for {vae.latent_channels} channels."
            )
        setattr(vae, attribute, table)


@torch.no_grad()
def encode(vae: WanVae, clip_BCFHW: Tensor) -> Tensor:
    """Encode a clip to normalised latents.

    clip_BCFHW: RGB in -1..1 on any device, 4n+1 frames, height and width multiples of 8; moved chunk by chunk.
    Returns float32 latents_BCTHW on the VAE's device: the posterior's mean, so the same clip gives the same latents.
    Raises DataError for a clip of another size.
    """
    mu_BCTHW, _ = vae.conv1(encode_features(vae, clip_BCFHW)).chunk(2, dim=1)
    mean_1C111, inverse_std_1C111 = vae.tables()
    return (mu_BCTHW.float() - mean_1C111) * inverse_std_1C111


@torch.no_grad()
def encode_features(vae: WanVae, clip_BCFHW: Tensor) -> Tensor:
    """As `encode`, up to what the encoder says before it is turned into mean and variance; in the VAE's dtype."""
    check_clip(clip_BCFHW, family="Wan", time_stride=TIME_STRIDE, space_stride=SPACE_STRIDE)
    memory = FrameMemory(on_cpu=vae.cache_on_cpu)
    encoded = []
    for start in (0, *range(1, clip_BCFHW.shape[2], TIME_STRIDE)):
        end = start + TIME_STRIDE if start else 1
        encoded.append(vae.encoder(clip_BCFHW[:, :, start:end].to(vae.device, vae.dtype), memory))
    return torch.cat(encoded, dim=2)


@torch.no_grad()
def decode_chunks(vae: WanVae, latents_BCTHW: Tensor) -> Iterator[Tensor]:
    """As `decode_frames`, straight from the network: in its dtype, and not limited to -1..1."""
    check_latents(latents_BCTHW, channels=vae.latent_channels)
    memory = FrameMemory(on_cpu=vae.cache_on_cpu)
    mean_1C111, inverse_std_1C111 = vae.tables()
    z_BCTHW = latents_BCTHW.to(vae.device, torch.float32) / inverse_std_1C111 + mean_1C111
    for latent_frame_BC1HW in vae.conv2(z_BCTHW.to(vae.dtype)).split(1, dim=2):
        yield vae.decoder(latent_frame_BC1HW, memory)


def decode_frames(vae: WanVae, latents_BCTHW: Tensor) -> Iterator[Tensor]:
    """Decode one latent frame at a time: yields clip_BCFHW chunks of 1, 4, 4, … frames, float32 RGB in -1..1.

    latents_BCTHW: normalised, on any device. Chunks are on the VAE's device; memory does not grow with the length.
    """
    for chunk_BCFHW in decode_chunks(vae, latents_BCTHW):
        yield chunk_BCFHW.float().clamp_(-1, 1)


def decode(vae: WanVae, latents_BCTHW: Tensor) -> Tensor:
    """Decode to a whole clip_BCFHW in main memory, float32 RGB in -1..1: n latent frames make 4n-3 frames."""
    return torch.cat([chunk_BCFHW.cpu() for chunk_BCFHW in decode_frames(vae, latents_BCTHW)], dim=2)


def compute_dtype(device: torch.device) -> torch.dtype:
    """What the VAE computes in when `--vae_dtype` does not say: bfloat16; on a CPU float32, which is faster there."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def training_samples(
    vae: WanVae,
    clips: Clips,
    *,
    dtype: torch.dtype,
    image_encoder: ClipVision | None = None,
    i2v: bool = False,
    flf2v: bool = False,
    one_frame: bool = False,
) -> list[list[dict[str, Tensor]]]:
    """What the cache keeps of each clip (samples.py), one sample a clip. Latents get `dtype`."""

    def encode_stored(clip_BCFHW: Tensor) -> Tensor:
        return encode(vae, clip_BCFHW).to(dtype)

    if one_frame:
        if image_encoder is None:
            raise DataError("--one_frame needs the image encoder.", "Add --clip.")
        found = samples.one_frame_samples(encode_stored, clips, image_encoder=image_encoder)
    else:
        found = samples.clip_samples(encode_stored, clips, image_encoder=image_encoder, i2v=i2v, flf2v=flf2v)
    word = str(dtype).removeprefix("torch.")
    # The format's own oddity: the key of the CLIP features carries the latents' type, not theirs.
    return [[{f"clip_{word}" if name == "clip" else name: value for name, value in one.items()}] for one in found]
