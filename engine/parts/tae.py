"""Tiny autoencoders for video latents, by madebyollin (github.com/madebyollin/taehv, MIT): quick, rough pictures.

`taehv` is made for HunyuanVideo's latents, `taew2_1` for Wan 2.1's. Both have the same names and shapes, so nothing in
a file tells them apart. They take latents as the DiT has them, without any scaling, and give RGB.

A decoder is a chain of layers through which frames run one by one: each layer is a stream that asks the one before it
for the next frame. So only a few frames' features are in memory, however long the video is. A layer that looks back in
time keeps the frame before; one that grows in time gives two frames for one.

Widths are read off the file. Given up: encoding, the "super" decoders, latents of other than 8 x 8 pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..contract.errors import DataError, WeightsError
from .arrangement import Arrangement, Rows
from .weight_views import ArrangedWeights
from .weights import load_into, open_weights

SPACE_STRIDE = 8
GROWTH = {"decoder.7": 1, "decoder.13": 2, "decoder.19": 2}
"""The layers that make more frames, and how many from one."""
WORKING_VALUES = 448
"""Values for each pixel of the picture that decoding takes at once: 299 are features (tests/parts/test_tae.py counts
them), the others are for what convolutions take themselves."""

SAME_LAYOUT = ("taehv", "taew2_1", "taecvx", "taeos1_3")
"""Those published for latents of 16 channels, each for a different model."""

Frames = Iterator[Tensor]
Shapes = Mapping[str, tuple[int, ...]]


class SoftClamp(nn.Module):
    """Keeps latents within -3..3."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return 3 * torch.tanh(x_BCHW / 3)


class WithPast(nn.Module):
    """A residual block that also sees the frame before: zeros before the first one."""

    def __init__(self, width: int):
        super().__init__()
        relu = nn.ReLU(inplace=True)
        self.conv = nn.Sequential(_conv(2 * width, width), relu, _conv(width, width), relu, _conv(width, width))

    def forward(self, x_BCHW: Tensor, past_BCHW: Tensor) -> Tensor:
        return functional.relu(self.conv(torch.cat([x_BCHW, past_BCHW], dim=1)) + x_BCHW)

    def stream(self, frames: Frames) -> Frames:
        past_BCHW = None
        for x_BCHW in frames:
            made_BCHW = self(x_BCHW, torch.zeros_like(x_BCHW) if past_BCHW is None else past_BCHW)
            past_BCHW = x_BCHW  # before the yield, so that no older frame is held while this one goes on
            yield made_BCHW


class Grow(nn.Module):
    """Makes `frames` frames from one, and then each twice as high and wide.

    The published order repeats pixels first; as the convolution is of single pixels, the result is the same, for a
    quarter of the work.
    """

    def __init__(self, width: int, *, frames: int):
        super().__init__()
        self.frames = frames
        self.conv = nn.Conv2d(width, frames * width, 1, bias=False)

    def stream(self, frames: Frames) -> Frames:
        for x_BCHW in frames:
            for grown_BCHW in self.conv(x_BCHW).chunk(self.frames, dim=1):
                yield functional.interpolate(grown_BCHW, scale_factor=2, mode="nearest")


class Pool(nn.Module):
    """The encoder's counterpart, which here only holds its weight."""

    def __init__(self, width: int, *, frames: int):
        super().__init__()
        self.conv = nn.Conv2d(frames * width, width, 1, bias=False)


class TinyAutoencoder(nn.Module):
    """`decoder`, and `encoder` if the file has one, only so that the whole file is checked.

    Layers without weights are kept, because the published names count them.
    """

    def __init__(self, *, latent_channels: int, widths: tuple[int, int, int, int], encoder_width: int | None = None):
        super().__init__()
        self.latent_channels = latent_channels
        if encoder_width is not None:
            self.encoder = _encoder(encoder_width, latent_channels)
        self.decoder = _decoder(latent_channels, widths)

    @property
    def lead(self) -> int:
        """Frames to be dropped at the beginning: a video of T latent frames has 4T - 3."""
        return prod(GROWTH.values()) - 1

    @torch.no_grad()
    def decode_frames(self, latents_BCTHW: Tensor) -> Frames:
        """Frames BCHW one by one, RGB 0..1 float32, on the weights' device; 4T - 3 of T latent frames. DataError."""
        if latents_BCTHW.ndim != 5 or latents_BCTHW.shape[1] != self.latent_channels:
            raise DataError(
                f"This tiny autoencoder takes latents of {self.latent_channels} channels, "
                f"not {list(latents_BCTHW.shape)}."
            )
        weight = self.decoder[1].weight
        frames: Frames = iter(latents_BCTHW.to(weight.device, weight.dtype).unbind(dim=2))
        for layer in self.decoder:
            frames = layer.stream(frames) if isinstance(layer, (WithPast, Grow)) else map(layer, frames)
        for frame_BCHW in islice(frames, self.lead, None):
            yield frame_BCHW.float().clamp(0, 1)

    def working_bytes(self, *, height: int, width: int) -> int:
        """Memory that decoding latents of this height and width takes besides the result, weights included."""
        weights = list(self.parameters())
        pixels = height * width * SPACE_STRIDE**2
        return weights[0].element_size() * (WORKING_VALUES * pixels + sum(weight.numel() for weight in weights))


def _conv(columns: int, rows: int, *, bias: bool = True, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(columns, rows, 3, padding=1, bias=bias, stride=stride)


def _decoder(latent_channels: int, widths: tuple[int, int, int, int]) -> nn.Sequential:
    layers: list[nn.Module] = [SoftClamp(), _conv(latent_channels, widths[0]), nn.ReLU(inplace=True)]
    for width, following, frames in zip(widths[:-1], widths[1:], GROWTH.values(), strict=True):
        layers += [*(WithPast(width) for _ in range(3)), nn.Identity(), Grow(width, frames=frames)]
        layers.append(_conv(width, following, bias=False))
    return nn.Sequential(*layers, nn.ReLU(inplace=True), _conv(widths[-1], 3))


def _encoder(width: int, latent_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [_conv(3, width), nn.Identity()]
    for frames in (2, 2, 1):
        layers += [Pool(width, frames=frames), _conv(width, width, bias=False, stride=2)]
        layers += [WithPast(width) for _ in range(3)]
    return nn.Sequential(*layers, _conv(width, latent_channels))


def arrange(shapes: Shapes) -> Arrangement:
    """Our tensors by the names of a file. Of a layer that makes more frames than ours, the last rows are taken."""
    made: dict[str, tuple[Rows, ...]] = {}
    for name, shape in shapes.items():
        layer, _, _ = name.partition(".conv.")
        rows = GROWTH[layer] * shape[1] if layer in GROWTH else shape[0]
        made[name] = (Rows(name, start=-rows),) if rows < shape[0] else (Rows(name),)
    return made


def build(shapes: Shapes) -> TinyAutoencoder:
    """The autoencoder of a file with these (arranged) names and shapes, on "meta". KeyError: one is missing."""
    widths = tuple(shapes[f"decoder.{index}.weight"][0] for index in (1, 8, 14, 20))
    encoder = shapes["encoder.0.weight"][0] if "encoder.0.weight" in shapes else None
    with torch.device("meta"):
        return TinyAutoencoder(
            latent_channels=shapes["decoder.1.weight"][1],
            widths=(widths[0], widths[1], widths[2], widths[3]),
            encoder_width=encoder,
        ).requires_grad_(False)


def check(path: str | Path, *, latent_channels: int, wanted: str, role: str) -> ArrangedWeights:
    """Open a file; reads headers only (a `.pth` whole). WeightsError unless it is a tiny autoencoder for such latents.

    `wanted`: name of the published one for them; `role`: the flag that names the file.
    """
    advice = f"{role} takes {wanted} of github.com/madebyollin/taehv, as .pth or .safetensors."
    file = open_weights(path, role=role)
    needed = [f"decoder.{index}.weight" for index in (1, 8, 14, 20)]
    if any(len(file.shapes.get(name, ())) != 4 for name in (*needed, *(f"{layer}.conv.weight" for layer in GROWTH))):
        raise WeightsError(f"{role} {file.path.name} is not a tiny autoencoder for video.", advice)
    channels = file.shapes["decoder.1.weight"][1]
    if channels != latent_channels:
        raise WeightsError(
            f"{role} {file.path.name} is for latents of {channels} channels, but here they have {latent_channels}.",
            advice,
        )
    return ArrangedWeights(file, arrange(file.shapes))


def other_kind(path: str | Path, *, wanted: str) -> str:
    """Which of the published ones of the same layout a file is by its name; "" if that is `wanted` or unknown."""
    name = Path(path).name.lower()
    return next((kind for kind in SAME_LAYOUT if kind != wanted and name.startswith(kind)), "")


def load(file: ArrangedWeights, *, dtype: torch.dtype | None) -> TinyAutoencoder:
    """The decoder in a file that `check` returned, in main memory. `dtype` None keeps the file's. WeightsError."""
    model = build(file.shapes)
    load_into(model, file, rename=lambda name: name, device="cpu", dtype=dtype)
    if hasattr(model, "encoder"):
        del model.encoder
    return model.eval()
