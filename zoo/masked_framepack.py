"""The FramePack DiT for training on captions of different lengths; see masked_blocks.py. It computes the same."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from engine.families.framepack.detect import FramePackConfig
from engine.families.framepack.embedders import TextEmbedding
from engine.families.framepack.layers import (
    HunyuanVideoSingleTransformerBlock,
    HunyuanVideoTransformerBlock,
    RefinerBlock,
)
from engine.families.framepack.model import FramePackModel, Tokens
from engine.parts.embeddings import gated_sum

from .masked_blocks import MaskedDoubleStream, MaskedSingleStream, masked_attention, mean_of, scores_of

MaskedText = tuple[Tensor, Tensor]
"""States [B, L, D], and which of them count [B, L]."""


class MaskedFramePackRefinerBlock(RefinerBlock):
    def forward(self, x_BLD: Tensor, vector_BD: Tensor, scores_B11L: Tensor | None) -> Tensor:
        attention_gate, feed_forward_gate = self.norm_out(vector_BD)
        found_BLD = masked_attention(*self.attn.heads(self.norm1(x_BLD)), scores_B11L)
        x_BLD = gated_sum(x_BLD, self.attn.project(found_BLD), attention_gate)
        return self.ff(x_BLD, self.norm2(x_BLD), feed_forward_gate)


class MaskedTextEmbedding(TextEmbedding):
    def __init__(self, config: FramePackConfig):
        super().__init__(config, backend="auto")
        blocks = (MaskedFramePackRefinerBlock(config, backend="auto") for _ in self.token_refiner.refiner_blocks)
        self.token_refiner.refiner_blocks = nn.ModuleList(blocks)

    def forward(self, text: MaskedText, timestep_B: Tensor) -> tuple[Tensor, list[int]]:  # type: ignore[override]
        text_BLD, mask_BL = text
        vector_BD = self.time_text_embed(timestep_B, mean_of(text_BLD, mask_BL))
        x_BLD, scores_B11L = self.proj_in(text_BLD), scores_of(mask_BL)
        for block in self.token_refiner.refiner_blocks:
            x_BLD = block(x_BLD, vector_BD, scores_B11L)
        return x_BLD, [mask_BL.shape[1]] * len(mask_BL)


class MaskedFramePackDouble(MaskedDoubleStream, HunyuanVideoTransformerBlock):
    pass


class MaskedFramePackSingle(MaskedSingleStream, HunyuanVideoSingleTransformerBlock):
    def gates(self, vector_BD: Tensor) -> tuple[Tensor, ...]:
        return self.norm(vector_BD)


class MaskedFramePack(FramePackModel):
    """`FramePackModel` whose `text` is a `MaskedText`."""

    def __init__(self, config: FramePackConfig):
        super().__init__(config)
        self.context_embedder = MaskedTextEmbedding(config)
        double, single = self.transformer_blocks, self.single_transformer_blocks
        self.transformer_blocks = nn.ModuleList(MaskedFramePackDouble(config, backend="auto") for _ in double)
        self.single_transformer_blocks = nn.ModuleList(MaskedFramePackSingle(config, backend="auto") for _ in single)

    @property
    def blocks(self) -> list[nn.Module]:
        """What is compiled."""
        return [*self.transformer_blocks, *self.single_transformer_blocks]

    def embed(  # type: ignore[override]
        self, x_BCTHW: Tensor, timestep_B: Tensor, text: MaskedText, pooled_BD: Tensor, **conditioning: Any
    ) -> Tokens:
        tokens = super().embed(x_BCTHW, timestep_B, text, pooled_BD, **conditioning)
        all_tokens = tokens.image_BLD.shape[1] + tokens.text_BLD.shape[1]
        return tokens._replace(key_lengths_B=scores_of(text[1], before=all_tokens - text[1].shape[1]))
