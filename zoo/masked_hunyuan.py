"""The HunyuanVideo DiT for training on captions of different lengths; see masked_blocks.py. It computes the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.families.hunyuan_video.detect import HunyuanVideoConfig
from engine.families.hunyuan_video.layers import MMDoubleStreamBlock, MMSingleStreamBlock, RefinerBlock
from engine.families.hunyuan_video.model import HunyuanVideoModel
from engine.parts import mmdit
from engine.parts.embeddings import gated_sum

from .masked_blocks import MaskedDoubleStream, MaskedSingleStream, masked_attention, mean_of, scores_of


class MaskedRefinerBlock(RefinerBlock):
    def forward(self, x_BLD: Tensor, vector_BD: Tensor, scores_B11L: Tensor | None) -> Tensor:
        attention_gate, feed_forward_gate = self._gates(vector_BD)
        found_BLD = masked_attention(*self._heads(self.norm1(x_BLD)), scores_B11L)
        x_BLD = gated_sum(x_BLD, self.self_attn_proj(found_BLD), attention_gate)
        return self.mlp(x_BLD, self.norm2(x_BLD), feed_forward_gate)


class MaskedDouble(MaskedDoubleStream, MMDoubleStreamBlock):
    pass


class MaskedSingle(MaskedSingleStream, MMSingleStreamBlock):
    def gates(self, vector_BD: Tensor) -> tuple[Tensor, ...]:
        return self.modulation(vector_BD)


class MaskedHunyuan(HunyuanVideoModel):
    """`HunyuanVideoModel` for captions that come as one tensor with a mask."""

    def __init__(self, config: HunyuanVideoConfig):
        super().__init__(config)
        refiner = self.txt_in.individual_token_refiner
        refiner.blocks = nn.ModuleList(MaskedRefinerBlock(config, backend="auto") for _ in refiner.blocks)
        self.double_blocks = nn.ModuleList(MaskedDouble(config, backend="auto") for _ in self.double_blocks)
        self.single_blocks = nn.ModuleList(MaskedSingle(config, backend="auto") for _ in self.single_blocks)

    @property
    def blocks(self) -> list[nn.Module]:
        """What is compiled."""
        return [*self.double_blocks, *self.single_blocks]

    def forward(  # type: ignore[override]
        self,
        x_BCTHW: Tensor,
        timestep_B: Tensor,
        text_BLD: Tensor,
        mask_BL: Tensor,
        *,
        pooled_BD: Tensor,
        guidance_B: Tensor,
    ) -> Tensor:
        """Velocity, float32 [B, C, T, H, W]; the arguments are the engine's but for text [B, L, D] and mask [B, L]."""
        tokens_BTHWD = self.img_in(x_BCTHW)
        grid, image_BLD = tuple(tokens_BTHWD.shape[1:4]), tokens_BTHWD.flatten(1, 3)
        text_BLD = self._refined(text_BLD, mask_BL, timestep_B)
        vector_BD = self._vector(timestep_B, pooled_BD, guidance_B)
        count = image_BLD.shape[1]
        cos_LD, sin_LD = mmdit.cached_table(
            grid, axes=self.config.rope_axes, theta=self.config.rope_theta, device=image_BLD.device
        )
        scores_B11L = scores_of(mask_BL, before=count)
        for block in self.double_blocks:
            image_BLD, text_BLD = block(image_BLD, text_BLD, vector_BD, cos_LD, sin_LD, scores_B11L)
        x_BLD = torch.cat([image_BLD, text_BLD], dim=1)
        cos_LD, sin_LD = mmdit.with_text((cos_LD, sin_LD), text_BLD.shape[1])
        for block in self.single_blocks:
            x_BLD = block(x_BLD, vector_BD, cos_LD, sin_LD, scores_B11L)
        return mmdit.from_patches(self.final_layer(x_BLD[:, :count], vector_BD), grid, self.config.patch_size)

    def _refined(self, text_BLD: Tensor, mask_BL: Tensor, timestep_B: Tensor) -> Tensor:
        refiner = self.txt_in
        vector_BD = refiner.t_embedder(timestep_B) + refiner.c_embedder(mean_of(text_BLD, mask_BL))
        x_BLD, scores_B11L = refiner.input_embedder(text_BLD), scores_of(mask_BL)
        for block in refiner.individual_token_refiner.blocks:
            x_BLD = block(x_BLD, vector_BD, scores_B11L)
        return x_BLD
