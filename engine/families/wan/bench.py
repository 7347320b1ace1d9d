"""What `bench` measures of Wan, and random inputs for it. The published sizes; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...parts.dit_sizes import DEFAULT_HEAD_DIM
from ...parts.step_caching import magcache_flags
from ..values import BenchModel, BenchSize, BenchVae
from .detect import WanConfig
from .step_caches import PUBLISHED
from .variants import LATENT_CHANNELS

if TYPE_CHECKING:
    from torch import Tensor

WORDS = 120  # tokens of a caption
VAE_WIDTHS = (96, 192, 384, 384)
_LONG = {"height": 480, "width": 832, "frames": 81}
_SHORT = {"height": 480, "width": 832, "frames": 33}


def _config(*, dim: int, ffn_dim: int, layers: int, heads: int) -> WanConfig:
    """Text to video."""
    return WanConfig(
        dim=dim, ffn_dim=ffn_dim, freq_dim=256, text_dim=4096, in_dim=LATENT_CHANNELS, out_dim=LATENT_CHANNELS,
        num_layers=layers, num_heads=heads, head_dim=DEFAULT_HEAD_DIM,
    )  # fmt: skip


def _model(name: str, task: str, config: WanConfig, **sizes: tuple[BenchSize, ...]) -> BenchModel:
    options = {"train": {"task": task}, "generate": {"task": task}}
    ratios = PUBLISHED[task]["magcache"].numbers
    return BenchModel(
        name=name, config=config, heads=config.num_heads, head_dim=config.head_dim, options=options,
        modes={"magcache": magcache_flags(ratios)}, **sizes,
    )  # fmt: skip


MODELS = (
    _model(
        "wan-1.3b",
        "t2v-1.3B",
        _config(dim=1536, ffn_dim=8960, layers=30, heads=12),
        train=(BenchSize(**_LONG, vram="8GB"), BenchSize(**_SHORT, vram="6GB")),
        denoise=(BenchSize(**_LONG),),
    ),
    _model(
        "wan-14b",
        "t2v-14B",
        _config(dim=5120, ffn_dim=13824, layers=40, heads=40),
        train=(BenchSize(**_LONG), BenchSize(**_SHORT, vram="8GB")),
        denoise=(BenchSize(**_LONG), BenchSize(**_SHORT)),
    ),
)


# --------------------------------------------------------------------------------------------------------------- VAE


class _Shapes(dict[str, tuple[int, ...]]):
    """Names and shapes of a checkpoint in the making."""

    def layer(self, name: str, rows: int, columns: int, *kernel: int) -> None:
        self[f"{name}.weight"], self[f"{name}.bias"] = (rows, columns, *kernel), (rows,)

    def residual(self, name: str, before: int, width: int) -> None:
        for number, channels in ((0, before), (3, width)):
            self[f"{name}.residual.{number}.gamma"] = (channels, 1, 1, 1)
        for number, channels in ((2, before), (6, width)):
            self.layer(f"{name}.residual.{number}", width, channels, 3, 3, 3)
        if before != width:
            self.layer(f"{name}.shortcut", width, before, 1, 1, 1)

    def middle(self, name: str, width: int) -> None:
        for number in (0, 2):
            self.residual(f"{name}.{number}", width, width)
        self[f"{name}.1.norm.gamma"] = (width, 1, 1)
        self.layer(f"{name}.1.to_qkv", 3 * width, width, 1, 1)
        self.layer(f"{name}.1.proj", width, width, 1, 1)

    def ends(self, side: str, first: tuple[int, int], last: tuple[int, int]) -> None:
        """The convolutions that a coder begins and ends with, as (out, in)."""
        self.layer(f"{side}.conv1", *first, 3, 3, 3)
        self[f"{side}.head.0.gamma"] = (last[1], 1, 1, 1)
        self.layer(f"{side}.head.2", *last, 3, 3, 3)


def vae_shapes() -> dict[str, tuple[int, ...]]:
    """The published VAE: two residual blocks a level in the encoder, three in the decoder, half the width after each
    upsampling."""
    found, deepest, both = _Shapes(), VAE_WIDTHS[-1], 2 * LATENT_CHANNELS
    found.ends("encoder", (VAE_WIDTHS[0], 3), (both, deepest))
    found.ends("decoder", (deepest, LATENT_CHANNELS), (3, VAE_WIDTHS[0]))
    for side in ("encoder", "decoder"):
        found.middle(f"{side}.middle", deepest)
    found.layer("conv1", both, both, 1, 1, 1)
    found.layer("conv2", LATENT_CHANNELS, LATENT_CHANNELS, 1, 1, 1)
    _levels(found, "encoder.downsamples", VAE_WIDTHS, blocks=2, in_time=(1, 2))
    _levels(found, "decoder.upsamples", VAE_WIDTHS[::-1], blocks=3, in_time=(0, 1))
    return dict(found)


def _levels(found: _Shapes, prefix: str, widths: tuple[int, ...], *, blocks: int, in_time: tuple[int, ...]) -> None:
    number, before, decoding = 0, widths[0], prefix.startswith("decoder")
    for level, width in enumerate(widths):
        for _ in range(blocks):
            found.residual(f"{prefix}.{number}", before, width)
            number, before = number + 1, width
        if level == len(widths) - 1:
            break
        layer = f"{prefix}.{number}"
        found.layer(f"{layer}.resample.1", width // 2 if decoding else width, width, 3, 3)
        if level in in_time:
            found.layer(f"{layer}.time_conv", 2 * width if decoding else width, width, 3, 1, 1)
        number, before = number + 1, width // 2 if decoding else width


def plain_vae(tiny_one: bool) -> Any:
    """diffusers' Wan VAE."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(base_dim=8, dim_mult=[1, 2, 2, 2]) if tiny_one else AutoencoderKLWan()


VAE = BenchVae(name="wan", sizes=(BenchSize(**_LONG),), shapes=vae_shapes, plain=plain_vae)


# ------------------------------------------------------------------------------------------------------------- inputs


def write_encoders(folder: Path, config: WanConfig) -> dict[str, Path]:
    """A UMT5 of two layers; its tokenizer is the tiny one, beside it."""
    from ...parts.weights import write_weights
    from . import tiny

    path = folder / tiny.TEXT_NAME.replace(".pth", ".safetensors")
    write_weights(path, tiny.text_tensors(1, rows=tiny.VOCABULARY, width=config.text_dim))
    tokenizer = folder / tiny.TOKENIZER_NAME
    tokenizer.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.write_bytes(tiny.train_tokenizer())
    return {"t5": path}


def latents(config: WanConfig, *, size_THW: tuple[int, int, int], window: int) -> dict[str, Tensor]:
    """One clip."""
    import torch

    return {"latents": torch.randn(config.out_dim, *size_THW).bfloat16()}


def caption(config: WanConfig) -> dict[str, Tensor]:
    """As long as captions are."""
    import torch

    return {"varlen_t5": 0.1 * torch.randn(WORDS, config.text_dim).bfloat16()}
