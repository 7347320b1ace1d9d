"""The HunyuanVideo DiT for training on captions of different lengths: what it computes is the same.

The engine cuts the padding off and so runs attention sample by sample where lengths differ, and reads the lengths in
main memory. With hundreds of small samples a mask is far faster, and nothing waits for the GPU. The weights and their
names are the engine's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.families.hunyuan_video.detect import HunyuanVideoConfig
from engine.families.hunyuan_video.layers import MMDoubleStreamBlock, MMSingleStreamBlock, RefinerBlock
from engine.families.hunyuan_video.model import HunyuanVideoModel
from engine.parts import mmdit
from engine.parts.embeddings import gated_sum

_NEVER = -30_000.0


def scores_of(mask_BL: Tensor, *, before: int = 0) -> Tensor:
    """What is added to attention scores, [B, 1, 1, before + L]: zero for `before` tokens and where the mask is true."""
    scores_BL = torch.zeros(mask_BL.shape, device=mask_BL.device).masked_fill(~mask_BL, _NEVER)
    return F.pad(scores_BL, (before, 0))[:, None, None]


def masked_attention(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, scores_B11L: Tensor) -> Tensor:
    """[B, L, D of all heads]."""
    q_BHLD, k_BHLD, v_BHLD = (part.transpose(1, 2) for part in (q_BLHD, k_BLHD, v_BLHD))
    scores_BHLL = (q_BHLD @ k_BHLD.transpose(2, 3)).float() * q_BLHD.shape[-1] ** -0.5 + scores_B11L
    return (scores_BHLL.softmax(dim=-1).to(v_BHLD.dtype) @ v_BHLD).transpose(1, 2).flatten(2)


class MaskedRefinerBlock(RefinerBlock):
    def forward(self, x_BLD: Tensor, vector_BD: Tensor, scores_B11L: Tensor) -> Tensor:  # type: ignore[override]
        attention_gate, feed_forward_gate = self._gates(vector_BD)
        found_BLD = masked_attention(*self._heads(self.norm1(x_BLD)), scores_B11L)
        x_BLD = gated_sum(x_BLD, self.self_attn_proj(found_BLD), attention_gate)
        return gated_sum(x_BLD, self.mlp(self.norm2(x_BLD)), feed_forward_gate)


def masked_double(
    block: mmdit.DoubleStreamBlock,
    image_BLD: Tensor,
    text_BLD: Tensor,
    vector_BD: Tensor,
    table: tuple[Tensor, Tensor],
    scores_B11L: Tensor,
) -> tuple[Tensor, Tensor]:
    """Image and text after a double-stream block of whatever family. `table`: rotations of the image tokens."""
    count = image_BLD.shape[1]
    (shift, scale, *image_rest), (text_shift, text_scale, *text_rest) = (
        stream.modulation(vector_BD) for stream in block.streams()
    )
    image = block.image_before(image_BLD, *table, shift=shift, scale=scale)
    text = block.text_before(text_BLD, shift=text_shift, scale=text_scale)
    found_BLD = masked_attention(*(torch.cat(both, dim=1) for both in zip(image, text, strict=True)), scores_B11L)
    image_BLD = block.image_after(image_BLD, found_BLD[:, :count], modulation=image_rest)
    return image_BLD, block.text_after(text_BLD, found_BLD[:, count:], modulation=text_rest)


class MaskedDouble(MMDoubleStreamBlock):
    def forward(  # type: ignore[override]
        self,
        image_BLD: Tensor,
        text_BLD: Tensor,
        vector_BD: Tensor,
        cos_LD: Tensor,
        sin_LD: Tensor,
        scores_B11L: Tensor,
    ) -> tuple[Tensor, Tensor]:
        return masked_double(self, image_BLD, text_BLD, vector_BD, (cos_LD, sin_LD), scores_B11L)


class MaskedSingle(MMSingleStreamBlock):
    def forward(  # type: ignore[override]
        self, x_BLD: Tensor, vector_BD: Tensor, cos_LD: Tensor, sin_LD: Tensor, scores_B11L: Tensor
    ) -> Tensor:
        shift, scale, gate = self.modulation(vector_BD)
        *heads, hidden_BLD = self.before_attention(x_BLD, cos_LD, sin_LD, shift=shift, scale=scale)
        return self.after_attention(x_BLD, masked_attention(*heads, scores_B11L), hidden_BLD, gate=gate)


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


def mean_of(text_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """The mean of the tokens where the mask is true, float32 [B, D]."""
    valid_BL1 = mask_BL.unsqueeze(-1)
    return (text_BLD.float() * valid_BL1).sum(dim=1) / valid_BL1.sum(dim=1)
