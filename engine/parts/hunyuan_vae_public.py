"""Sizes, names and shapes of the published HunyuanVideo VAE, and diffusers' one to compare with, for `bench`.

Standard library only, as what imports it.
"""

from __future__ import annotations

from typing import Any

LATENT_CHANNELS = 16
TIME_STRIDE = 4
SPACE_STRIDE = 8
WIDTHS = (128, 256, 512, 512)
Shapes = dict[str, tuple[int, ...]]


def public_shapes(widths: tuple[int, ...] = WIDTHS) -> Shapes:
    """Those of a VAE with `widths` channels at full, half, quarter and eighth size: two residual blocks per level in
    the encoder, three in the decoder, and resampling between levels."""
    found: Shapes = {}
    both = 2 * LATENT_CHANNELS
    _coder(found, "encoder", widths, blocks=2, channels=(3, both), middle=widths[-1])
    _coder(found, "decoder", widths[::-1], blocks=3, channels=(LATENT_CHANNELS, 3), middle=widths[-1])
    _layer(found, "quant_conv", both, both, 1, 1, 1)
    _layer(found, "post_quant_conv", LATENT_CHANNELS, LATENT_CHANNELS, 1, 1, 1)
    return found


def _coder(
    found: Shapes, side: str, widths: tuple[int, ...], *, blocks: int, channels: tuple[int, int], middle: int
) -> None:
    way = "down" if side == "encoder" else "up"
    _layer(found, f"{side}.conv_in.conv", widths[0], channels[0], 3, 3, 3)
    before = widths[0]
    for level, width in enumerate(widths):
        for number in range(blocks):
            _resnet(found, f"{side}.{way}_blocks.{level}.resnets.{number}", before, width)
            before = width
        if level < len(widths) - 1:
            _layer(found, f"{side}.{way}_blocks.{level}.{way}samplers.0.conv.conv", width, width, 3, 3, 3)
    for number in range(2):
        _resnet(found, f"{side}.mid_block.resnets.{number}", middle, middle)
    attention = f"{side}.mid_block.attentions.0"
    found[f"{attention}.group_norm.weight"] = found[f"{attention}.group_norm.bias"] = (middle,)
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        _layer(found, f"{attention}.{part}", middle, middle)
    found[f"{side}.conv_norm_out.weight"] = found[f"{side}.conv_norm_out.bias"] = (widths[-1],)
    _layer(found, f"{side}.conv_out.conv", channels[1], widths[-1], 3, 3, 3)


def _resnet(found: Shapes, name: str, before: int, width: int) -> None:
    for number, channels in ((1, before), (2, width)):
        found[f"{name}.norm{number}.weight"] = found[f"{name}.norm{number}.bias"] = (channels,)
        _layer(found, f"{name}.conv{number}.conv", width, channels, 3, 3, 3)
    if before != width:
        _layer(found, f"{name}.conv_shortcut.conv", width, before, 1, 1, 1)


def _layer(found: Shapes, name: str, rows: int, columns: int, *kernel: int) -> None:
    found[f"{name}.weight"], found[f"{name}.bias"] = (rows, columns, *kernel), (rows,)


def plain_vae(tiny: bool) -> Any:
    """diffusers' HunyuanVideo VAE with its default tiling, tiles of 256 pixels."""
    from diffusers import AutoencoderKLHunyuanVideo

    small = {"block_out_channels": (16, 16, 16, 16), "norm_num_groups": 4} if tiny else {}
    vae = AutoencoderKLHunyuanVideo(**small)
    vae.enable_tiling()
    return vae
