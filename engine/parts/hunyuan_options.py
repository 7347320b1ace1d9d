"""Options of the families that are built on HunyuanVideo's VAE and text encoders. Standard library only.

A family lists these sections, or subclasses of them, in its `options.py`. Knows no family.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..contract.errors import OptionError
from ..contract.schema import Section, opt, require

TEXT_FILES = ("text_encoder1", "text_encoder2")
TEXT_TOKENS = 256  # that LLaVA-LLaMA-3 reads of a caption at most, its template's closing token included
TILE = 256  # pixels a side
TILE_STEP = 32  # pixels; so that the overlap, a quarter of a tile, is a whole number of latents
LIGHTER: dict[str, tuple[dict[str, Any], ...]] = {
    "text": ({"fp8_llm": True},),
    "vae": (
        {"vae_tiling": True},
        {"vae_tiling": True, "vae_spatial_tile_sample_min_size": 192},
        {"vae_tiling": True, "vae_spatial_tile_sample_min_size": 128},
    ),
}
"""Options with which encoding and decoding take less memory, the smallest loss of quality first."""


@dataclass(frozen=True, kw_only=True)
class TextEncoders(Section, title="Text encoders"):
    """LLaVA-LLaMA-3 for the details, CLIP-L for the gist."""

    text_encoder1: str | None = opt(
        None, "LLaVA-LLaMA-3-8B: ComfyUI's llava_llama3_fp16.safetensors or a transformers folder.",
        file_kind="text_encoder", metavar="FILE",
    )  # fmt: skip
    text_encoder2: str | None = opt(
        None, "CLIP-L: ComfyUI's clip_l.safetensors or a transformers folder.", file_kind="text_encoder",
        metavar="FILE",
    )  # fmt: skip
    fp8_llm: bool = opt(False, "Keep LLaVA-LLaMA-3 in fp8: 8 GB instead of 14.")
    tokenizer1: str | None = opt(
        None, "Tokenizer of --text_encoder1: tokenizer.json or its folder. Default: looked for in the file, beside it "
        "and in the local hub cache.", file_kind="tokenizer", advanced=True, metavar="PATH",
    )  # fmt: skip
    tokenizer2: str | None = opt(
        None, "Tokenizer of --text_encoder2: tokenizer.json, vocab.json with merges.txt, or their folder. Default: "
        "looked for in the same way.", file_kind="tokenizer", advanced=True, metavar="PATH",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TextEncodersCaching(TextEncoders, title="Text encoders"):
    """LLaVA-LLaMA-3 for the details, CLIP-L for the gist."""

    text_encoder1: str = require(TextEncoders, "text_encoder1")
    text_encoder2: str = require(TextEncoders, "text_encoder2")


@dataclass(frozen=True, kw_only=True)
class VaeTiles(
    Section,
    title="VAE",
    accepted={"vae_chunk_size": "the VAE cuts long clips into pieces by itself, with the same result"},
):
    """How the VAE processes a clip: long ones always in pieces, large ones in tiles if chosen."""

    vae_tiling: bool = opt(False, "Work in tiles of 256 pixels: less memory, slightly lower quality.")
    vae_spatial_tile_sample_min_size: int | None = opt(
        None, "Size of these tiles, a multiple of 32; smaller takes less memory.", low=TILE_STEP, high=8192,
        unit="pixels",
    )  # fmt: skip
    vae_chunk_size: int | None = opt(None, "Frames that a convolution takes at once.", low=1, advanced=True)

    def __post_init__(self) -> None:
        size = self.vae_spatial_tile_sample_min_size
        if size is not None and size % TILE_STEP:
            below = size // TILE_STEP * TILE_STEP
            raise OptionError(
                f"--vae_spatial_tile_sample_min_size: {size} is not a multiple of {TILE_STEP}: use {below} or "
                f"{below + TILE_STEP}.",
                hint="Tiles overlap by a quarter, in whole latents of 8 pixels.",
                names=("vae_spatial_tile_sample_min_size",),
            )

    @property
    def tile(self) -> int | None:
        """Size of the tiles in pixels; None: whole pictures."""
        return self.vae_spatial_tile_sample_min_size or (TILE if self.vae_tiling else None)
