"""The layers of the Wan DiT: attention, the block and its VACE twin, head, image embedding, camera adapter.

Modules have the original checkpoint's names. Norms, modulation and head compute in float32, the rest in the type of
the weights. Knows neither the order in which layers run (model.py) nor where inputs come from (conditions.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ...ops.activated import activated
from ...ops.attention import attention, padded_attention
from ...parts.embeddings import Float32LayerNorm, Float32Linear, RmsNorm, gated_result, gated_sum, modulated_norm
from ...parts.rope import rotate
from .detect import WanConfig
from .variants import SPACE_STRIDE

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""q, k, v, BLHD each."""


class SelfAttention(nn.Module):
    def __init__(self, config: WanConfig, *, backend: str):
        super().__init__()
        self.num_heads, self.backend = config.num_heads, backend
        self.q = nn.Linear(config.dim, config.dim)
        self.k = nn.Linear(config.dim, config.dim)
        self.v = nn.Linear(config.dim, config.dim)
        self.o = nn.Linear(config.dim, config.dim)
        self.norm_q = RmsNorm(config.dim, eps=config.eps)
        self.norm_k = RmsNorm(config.dim, eps=config.eps)

    def heads(self, x_BLD: torch.Tensor) -> torch.Tensor:
        return x_BLD.unflatten(-1, (self.num_heads, -1))

    def projected(self, x_BLD: torch.Tensor, cos_LD: torch.Tensor, sin_LD: torch.Tensor) -> Heads:
        q_BLHD = rotate(self.heads(self.norm_q(self.q(x_BLD))), cos_LD, sin_LD)
        k_BLHD = rotate(self.heads(self.norm_k(self.k(x_BLD))), cos_LD, sin_LD)
        return q_BLHD, k_BLHD, self.heads(self.v(x_BLD))


class CrossAttention(SelfAttention):
    """Attention to the text and, with separate keys and values, to the image tokens; the two results are added."""

    def __init__(self, config: WanConfig, *, backend: str):
        super().__init__(config, backend=backend)
        self.text_len = config.text_len
        if config.image_dim is not None:
            self.k_img = nn.Linear(config.dim, config.dim)
            self.v_img = nn.Linear(config.dim, config.dim)
            self.norm_k_img = RmsNorm(config.dim, eps=config.eps)

    def seen(self, text_BLD: torch.Tensor, image_BLD: torch.Tensor | None) -> tuple[tuple[torch.Tensor, ...], ...]:
        """(keys, values) of the text, and of the image tokens if there are any, BLHD each."""
        text_k_BLHD, text_v_BLHD = self.heads(self.norm_k(self.k(text_BLD))), self.heads(self.v(text_BLD))
        pairs = [(text_k_BLHD, text_v_BLHD)]
        if image_BLD is not None:
            pairs.append((self.heads(self.norm_k_img(self.k_img(image_BLD))), self.heads(self.v_img(image_BLD))))
        return tuple(pairs)

    def forward(self, x_BLD: torch.Tensor, seen: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
        q_BLHD = self.heads(self.norm_q(self.q(x_BLD)))
        (text_k_BLHD, text_v_BLHD), *image = seen
        padding = self.text_len - text_k_BLHD.shape[1]  # tokens left out that are like the last one
        found_BLHD = padded_attention(q_BLHD, text_k_BLHD, text_v_BLHD, padding=padding, backend=self.backend)
        for k_BLHD, v_BLHD in image:
            found_BLHD = found_BLHD + attention(q_BLHD, k_BLHD, v_BLHD, backend=self.backend)
        return self.o(found_BLHD.flatten(2))


class WanAttentionBlock(nn.Module):
    """One transformer block, under the class name that other tools and LoRA files know it by.

    Takes and returns plain tensors, so that it can be streamed, checkpointed and compiled on its own.
    """

    TOKENWISE = ("before_attention", "after_attention")
    LAST = ("after_attention",)

    def __init__(self, config: WanConfig, *, backend: str):
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.zeros(1, 6, config.dim))
        self.self_attn = SelfAttention(config, backend=backend)
        self.norm3 = Float32LayerNorm(config.dim, eps=config.eps)
        self.cross_attn = CrossAttention(config, backend=backend)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(config.ffn_dim, config.dim)
        )

    def forward(
        self,
        x_BLD: torch.Tensor,
        time_B6D: torch.Tensor,
        cos_LD: torch.Tensor,
        sin_LD: torch.Tensor,
        text_BLD: torch.Tensor,
        image_BLD: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`time_B6D`, float32: shift, scale and gate for self-attention, then for the feed-forward layer. `text_BLD`:
        all text_len tokens, or fewer, of which the last one is padding and stands for the rest."""
        shift, scale, *others = (self.modulation.float() + time_B6D).chunk(6, dim=1)
        return self.after_attention(
            x_BLD,
            self._attended(x_BLD, cos_LD, sin_LD, shift=shift, scale=scale),
            modulation=others,
            seen=self.cross_attn.seen(text_BLD, image_BLD),
        )

    def _attended(self, *tokens: torch.Tensor, **modulation: torch.Tensor) -> torch.Tensor:
        heads = self.before_attention(*tokens, **modulation)
        return attention(*heads, backend=self.self_attn.backend).flatten(2)

    def before_attention(
        self,
        x_BLD: torch.Tensor,
        cos_LD: torch.Tensor,
        sin_LD: torch.Tensor,
        *,
        shift: torch.Tensor,
        scale: torch.Tensor,
    ) -> Heads:
        """Queries, keys and values."""
        return self.self_attn.projected(
            modulated_norm(x_BLD, shift, scale, eps=self.eps).to(x_BLD.dtype), cos_LD, sin_LD
        )

    def after_attention(
        self,
        x_BLD: torch.Tensor,
        found_BLD: torch.Tensor,
        *,
        modulation: Sequence[torch.Tensor],
        seen: Sequence[Sequence[torch.Tensor]],
    ) -> torch.Tensor:
        """Add to the tokens what self-attention found, then cross-attention, then the feed-forward layer."""
        gate, ffn_shift, ffn_scale, ffn_gate = modulation
        x_BLD = gated_sum(x_BLD, self.self_attn.o(found_BLD), gate)
        del found_BLD  # not needed while the widest layer runs
        x_BLD = x_BLD + self.cross_attn(self.norm3(x_BLD), seen)
        first, activation, last = self.ffn
        hidden = first(modulated_norm(x_BLD, ffn_shift, ffn_scale, eps=self.eps).to(x_BLD.dtype))
        last, hidden = activated(last, activation, hidden)
        if "after_attention" in self.LAST:
            return gated_result(x_BLD, last, hidden, ffn_gate)
        return gated_sum(x_BLD, last(hidden), ffn_gate)


class VaceWanAttentionBlock(WanAttentionBlock):
    """A block of VACE's second stack, which processes the tokens of the control and passes hints to the main stack.

    The first one also lets the video's own tokens in (`before_proj`). A class of its own, so that a LoRA adapts the
    same layers as in the model that VACE was made from.
    """

    LAST = ()  # `after_attention` does not yet give the block's result

    def __init__(self, config: WanConfig, *, backend: str, first: bool):
        super().__init__(config, backend=backend)
        if first:
            self.before_proj = nn.Linear(config.dim, config.dim)
        self.after_proj = nn.Linear(config.dim, config.dim)

    def forward(  # type: ignore[override]
        self, control_BLD: torch.Tensor, *others: torch.Tensor | None, video_BLD: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(control tokens for the next VACE block, hint). `video_BLD`: for the first one; `others`: as above."""
        if video_BLD is not None:
            control_BLD = self.before_proj(control_BLD) + video_BLD
        control_BLD = super().forward(control_BLD, *others)
        return control_BLD, self.after_proj(control_BLD)


class Head(nn.Module):
    """Tokens to the values of their patches, float32."""

    def __init__(self, config: WanConfig):
        super().__init__()
        self.eps = config.eps
        cells = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
        self.head = Float32Linear(config.dim, cells * config.out_dim)
        self.modulation = nn.Parameter(torch.zeros(1, 2, config.dim))

    def forward(self, x_BLD: torch.Tensor, time_BD: torch.Tensor) -> torch.Tensor:
        shift, scale = (self.modulation.float() + time_BD.unsqueeze(1)).chunk(2, dim=1)
        return self.head(modulated_norm(x_BLD, shift, scale, eps=self.eps))


class ImageEmbedding(nn.Module):
    """CLIP features to context tokens; for two images per sample, learned positions are added first."""

    def __init__(self, config: WanConfig):
        super().__init__()
        width = config.image_dim
        self.proj = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, config.dim),
            nn.LayerNorm(config.dim),
        )
        if config.has_image_positions:
            self.emb_pos = nn.Parameter(torch.zeros(1, config.image_tokens, width))

    def forward(self, clip_BLD: torch.Tensor) -> torch.Tensor:
        if hasattr(self, "emb_pos"):
            clip_BLD = clip_BLD + self.emb_pos
        return self.proj(clip_BLD)


class CameraResidual(nn.Module):
    """Two convolutions with a residual connection."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, kernel_size=3, padding=1)

    def forward(self, x_BDHW: torch.Tensor) -> torch.Tensor:
        return x_BDHW + self.conv2(F.relu(self.conv1(x_BDHW)))


class CameraAdapter(nn.Module):
    """Camera rays at every pixel (camera.py) to what they add to the video's tokens."""

    def __init__(self, config: WanConfig):
        super().__init__()
        patch = config.patch_size[1:]
        self.conv = nn.Conv2d(config.camera_dim, config.dim, kernel_size=patch, stride=patch)
        self.residual_blocks = nn.Sequential(CameraResidual(config.dim))

    def forward(self, rays_BCTHW: torch.Tensor) -> torch.Tensor:
        """[B, camera_dim / 64, T, H, W], H and W in pixels, to tokens [B, L, D], each latent frame by itself."""
        frames = rays_BCTHW.to(self.conv.weight.dtype).transpose(1, 2)
        pictures = F.pixel_unshuffle(frames.flatten(0, 1), SPACE_STRIDE)
        features = self.residual_blocks(self.conv(pictures))
        return features.unflatten(0, frames.shape[:2]).permute(0, 1, 3, 4, 2).flatten(1, 3)
