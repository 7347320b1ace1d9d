"""What Pocket Wan is: the sizes of its networks, their weights before training, and the files they are kept in.

Everything is the Wan family's own architecture under its own names, only narrower, so the engine loads the files like
any other Wan checkpoint. What the engine cannot read off the shapes stands in the files' metadata: the DiT's head size
and the tables that normalise the VAE's latents. The tokenizer lies inside the text encoder's file, as ComfyUI has it.
Knows nothing of training.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.families.wan import model as wan_model
from engine.families.wan import text as wan_text
from engine.families.wan import vae as wan_vae
from engine.families.wan.detect import WanConfig
from engine.families.wan.pocket import FILES
from engine.families.wan.variants import MASK_CHANNELS
from engine.parts import pocket
from engine.parts.tokenizers import from_sentencepiece
from engine.parts.weights import write_weights

from .counted_text import CountedWan
from .new_words import settled
from .pocket_sizes import PocketSizes, Shapes

SIZE, FRAMES = pocket.SIZE, pocket.FRAMES
LATENT_CHANNELS = wan_vae.LATENT_CHANNELS
FIRST_FRAME_CHANNELS = MASK_CHANNELS + LATENT_CHANNELS  # beside the noise, in image-to-video
VAE_NAME, TEXT_NAME, DIT_NAME = (FILES[option] for option in ("vae", "t5", "dit"))
I2V_NAME = "pocket_wan_i2v.safetensors"
_TOKEN_TABLE = "shared.weight"


@dataclass(frozen=True, kw_only=True)
class TextSizes:
    """A UMT5 encoder."""

    width: int = 128
    ffn: int = 256
    layers: int = 2
    heads: int = 4
    buckets: int = 32


@dataclass(frozen=True, kw_only=True)
class Sizes(PocketSizes):
    """The networks; image-to-video is the DiT with more input channels."""

    text: TextSizes
    dit: WanConfig


def _dit(*, dim: int, ffn: int, layers: int, heads: int, text: TextSizes) -> WanConfig:
    return WanConfig(
        dim=dim, ffn_dim=ffn, freq_dim=256, text_dim=text.width, in_dim=LATENT_CHANNELS, out_dim=LATENT_CHANNELS,
        num_layers=layers, num_heads=heads, head_dim=dim // heads,
    )  # fmt: skip


POCKET = Sizes(text=TextSizes(), dit=_dit(dim=192, ffn=448, layers=8, heads=3, text=TextSizes()))
"""The published sizes: VAE 6.3 MB, text encoder 0.7, text-to-video and image-to-video 8.4 each: 23.8 MB in files."""
_SMALL_TEXT = TextSizes(width=48, ffn=96, layers=1, heads=2)
SMALL = Sizes(
    vae_widths=(8, 16, 24, 24), text=_SMALL_TEXT, dit=_dit(dim=96, ffn=192, layers=3, heads=4, text=_SMALL_TEXT)
)
"""For trying the recipe on a CPU: learns a few clips by heart in minutes."""
SIZES = {"pocket": POCKET, "small": SMALL}
_WORDS_GAIN, _CONVOLUTION_GAIN = 8.0, 2.0
_LOG_VARIANCE = -6.0


# ------------------------------------------------------------------------------------------------------------- VAE


def vae_shapes(widths: Sequence[int]) -> Shapes:
    """Names and shapes of a Wan VAE with so many channels at each size: two residual blocks a size down, three up."""
    shapes: Shapes = {}
    top, bottom = widths[0], widths[-1]
    _conv(shapes, "encoder.conv1", 3, top, (3, 3, 3))
    number, previous = 0, top
    for level, width in enumerate(widths):
        for _ in range(2):
            _residual(shapes, f"encoder.downsamples.{number}", previous, width)
            number, previous = number + 1, width
        if level < 3:
            _conv(shapes, f"encoder.downsamples.{number}.resample.1", width, width, (3, 3))
            if level > 0:
                _conv(shapes, f"encoder.downsamples.{number}.time_conv", width, width, (3, 1, 1))
            number += 1
    _middle(shapes, "encoder.middle", bottom)
    _head(shapes, "encoder.head", bottom, 2 * LATENT_CHANNELS)
    _conv(shapes, "conv1", 2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, (1, 1, 1))
    _conv(shapes, "conv2", LATENT_CHANNELS, LATENT_CHANNELS, (1, 1, 1))
    _conv(shapes, "decoder.conv1", LATENT_CHANNELS, bottom, (3, 3, 3))
    _middle(shapes, "decoder.middle", bottom)
    number, previous = 0, bottom
    for level, width in enumerate(reversed(widths)):
        for _ in range(3):
            _residual(shapes, f"decoder.upsamples.{number}", previous, width)
            number, previous = number + 1, width
        if level < 3:
            _conv(shapes, f"decoder.upsamples.{number}.resample.1", width, width // 2, (3, 3))
            if level < 2:
                _conv(shapes, f"decoder.upsamples.{number}.time_conv", width, 2 * width, (3, 1, 1))
            number, previous = number + 1, width // 2
    _head(shapes, "decoder.head", top, 3)
    return shapes


def _conv(shapes: Shapes, name: str, in_channels: int, out_channels: int, kernel: tuple[int, ...]) -> None:
    shapes[f"{name}.weight"] = (out_channels, in_channels, *kernel)
    shapes[f"{name}.bias"] = (out_channels,)


def _residual(shapes: Shapes, name: str, in_channels: int, out_channels: int) -> None:
    shapes[f"{name}.residual.0.gamma"] = (in_channels, 1, 1, 1)
    _conv(shapes, f"{name}.residual.2", in_channels, out_channels, (3, 3, 3))
    shapes[f"{name}.residual.3.gamma"] = (out_channels, 1, 1, 1)
    _conv(shapes, f"{name}.residual.6", out_channels, out_channels, (3, 3, 3))
    if in_channels != out_channels:
        _conv(shapes, f"{name}.shortcut", in_channels, out_channels, (1, 1, 1))


def _middle(shapes: Shapes, name: str, channels: int) -> None:
    _residual(shapes, f"{name}.0", channels, channels)
    shapes[f"{name}.1.norm.gamma"] = (channels, 1, 1)
    _conv(shapes, f"{name}.1.to_qkv", channels, 3 * channels, (1, 1))
    _conv(shapes, f"{name}.1.proj", channels, channels, (1, 1))
    _residual(shapes, f"{name}.2", channels, channels)


def _head(shapes: Shapes, name: str, channels: int, out_channels: int) -> None:
    shapes[f"{name}.0.gamma"] = (channels, 1, 1, 1)
    _conv(shapes, f"{name}.2", channels, out_channels, (3, 3, 3))


def new_vae(sizes: Sizes) -> wan_vae.WanVae:
    """An untrained VAE on the CPU; its latents are not normalised yet.

    Its weights are larger than PyTorch's own, with which pictures get lost on the way (after 100 steps 14 dB instead of
    19): a SiLU lets little more than half through. The posterior begins narrow, so that the decoder sees latents at
    first and not their noise.
    """
    vae = without_tables(wan_vae.build(vae_shapes(sizes.vae_widths), device="cpu").requires_grad_(True))
    for name, weight in vae.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(weight)
        elif not name.endswith("gamma"):
            nn.init.normal_(weight, std=_CONVOLUTION_GAIN * weight[0].numel() ** -0.5)
    with torch.no_grad():
        vae.conv1.bias[LATENT_CHANNELS:] = _LOG_VARIANCE
        vae.conv1.weight[LATENT_CHANNELS:] *= 0.1
    return vae


# ---------------------------------------------------------------------------------------------------- text encoder


def text_shapes(sizes: TextSizes, *, rows: int) -> Shapes:
    """Names (transformers') and shapes of a UMT5 encoder whose token table has `rows` rows."""
    width = sizes.width
    shapes: Shapes = {"shared.weight": (rows, width), "encoder.final_layer_norm.weight": (width,)}
    for number in range(sizes.layers):
        attention, feed = (f"encoder.block.{number}.layer.{place}" for place in (0, 1))
        for letter in "qkvo":
            shapes[f"{attention}.SelfAttention.{letter}.weight"] = (width, width)
        shapes[f"{attention}.SelfAttention.relative_attention_bias.weight"] = (sizes.buckets, sizes.heads)
        shapes[f"{attention}.layer_norm.weight"] = shapes[f"{feed}.layer_norm.weight"] = (width,)
        shapes[f"{feed}.DenseReluDense.wi_0.weight"] = shapes[f"{feed}.DenseReluDense.wi_1.weight"] = (sizes.ffn, width)
        shapes[f"{feed}.DenseReluDense.wo.weight"] = (width, sizes.ffn)
    return shapes


def new_text_encoder(sizes: TextSizes, *, rows: int) -> Any:
    """An untrained UMT5EncoderModel on the CPU.

    T5 does not divide attention scores by the root of the head size; its first queries are that much smaller instead.
    """
    encoder = wan_text.build(text_shapes(sizes, rows=rows)).to_empty(device="cpu").requires_grad_(True)
    encoder.set_input_embeddings(encoder.shared)  # the one table under both its names again
    for name, weight in encoder.named_parameters():
        if "layer_norm" in name:
            nn.init.ones_(weight)
        elif name == "shared.weight":
            nn.init.normal_(weight)
        elif "relative_attention_bias" in name:
            nn.init.zeros_(weight)
        else:
            head_width = sizes.width // sizes.heads if name.endswith(".q.weight") else 1
            nn.init.normal_(weight, std=(weight.shape[1] * head_width) ** -0.5)
    return encoder


# ------------------------------------------------------------------------------------------------------------- DiT


def new_dit(config: WanConfig) -> CountedWan:
    """An untrained DiT on the CPU: Xavier, and a head of zeros, as in Wan's own code.

    But for the text. Of 512 tokens, some twenty are words, so at first words get four hundredths of the attention; with
    Wan's small text embedding the model would find them late. It gets Xavier too, and values that make up for the rest.
    """
    dit = CountedWan(config)
    for name, weight in dit.named_parameters():
        if name.endswith("modulation"):
            nn.init.normal_(weight, std=config.dim**-0.5)
        elif name.startswith("head.") or name.endswith(".bias"):
            nn.init.zeros_(weight)
        elif "norm" in name:
            nn.init.ones_(weight)
        elif name.startswith(("time_embedding", "time_projection")):
            nn.init.normal_(weight, std=0.02)
        else:
            nn.init.xavier_uniform_(weight.flatten(1), gain=_WORDS_GAIN if name.endswith("cross_attn.v.weight") else 1)
    return dit


# ----------------------------------------------------------------------------------------------------------- files


def write_vae(path: Path, tensors: Mapping[str, Tensor], *, mean: Sequence[float], std: Sequence[float]) -> None:
    """The VAE in fp16, whose finer steps its pixels need, with the tables that normalise its latents."""
    tables = {"latents_mean": json.dumps(list(mean)), "latents_std": json.dumps(list(std))}
    _write(path, tensors, dtype=torch.float16, metadata=tables)


def write_text_encoder(path: Path, tensors: Mapping[str, Tensor], *, tokenizer: bytes) -> None:
    """The text encoder in bf16 with its tokenizer; new words stand beside their kin (new_words.py)."""
    own = {name: tensor for name, tensor in tensors.items() if name != "encoder.embed_tokens.weight"}
    words = from_sentencepiece(tokenizer, source="Pocket tokenizer")
    own[_TOKEN_TABLE] = settled(own[_TOKEN_TABLE], words.split)
    blob = torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8)
    _write(path, {**own, "spiece_model": blob}, dtype=torch.bfloat16, metadata={})


def write_dit(path: Path, tensors: Mapping[str, Tensor], *, config: WanConfig) -> None:
    """The DiT in bf16."""
    _write(path, tensors, dtype=torch.bfloat16, metadata={"head_dim": str(config.head_dim)})


def _write(path: Path, tensors: Mapping[str, Tensor], *, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
    stored = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
    write_weights(path, stored, metadata={"format": "pt", **metadata})


def read_dit(path: Path) -> CountedWan:
    """A trained DiT, to train on: float32, on the CPU."""
    plain = wan_model.load(path, task=None, device="cpu", dtype=torch.float32)
    dit = CountedWan(plain.config)
    dit.load_state_dict(plain.state_dict())
    return dit


def read_text_encoder(path: Path) -> Any:
    """A trained text encoder, to train on: float32, on the CPU."""
    return wan_text.load({"t5": str(path)}, device="cpu", dtype=torch.float32).model.requires_grad_(True)


def read_vae(path: Path) -> wan_vae.WanVae:
    """A trained VAE, to train on: float32, on the CPU; its latents are not normalised."""
    vae = wan_vae.load(path, device="cpu", dtype=torch.float32).requires_grad_(True)
    return without_tables(vae)


def read_tables(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the latents, of a VAE's file."""
    vae = wan_vae.load(path, device="cpu", dtype=torch.float32)
    return vae.latent_mean, vae.latent_std


def without_tables(vae: wan_vae.WanVae) -> wan_vae.WanVae:
    """The VAE, whose latents are from now on as its encoder makes them."""
    vae.latent_mean, vae.latent_std = (0.0,) * LATENT_CHANNELS, (1.0,) * LATENT_CHANNELS
    return vae


def megabytes(shapes: Mapping[str, Sequence[int]]) -> float:
    """What tensors of these shapes take in 16 bits, in MB (10^6 bytes)."""
    return 2e-6 * sum(math.prod(shape) for shape in shapes.values())
