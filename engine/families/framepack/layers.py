"""The layers of FramePack's blocks, under the published checkpoint's names; their maths is `parts.mmdit`.

Blocks take and return plain tensors, so that each can be streamed, checkpointed and compiled on its own.
"""

from __future__ import annotations

import torch
from torch import nn

from ...ops.activated import activated
from ...parts.embeddings import Float32LayerNorm, RmsNorm, gated_result
from ...parts.mmdit import (
    EPS,
    DoubleStreamBlock,
    Heads,
    Modulation,
    Stream,
    activated_row,
    modulated,
    refiner_block,
    single_stream,
    split_heads,
)
from ...parts.rope import rotate
from .detect import FramePackConfig


class FeedForward(nn.Module):
    """linear, activation, linear. Names as in diffusers: `net.0.proj` and `net.2`."""

    def __init__(self, dim: int, hidden: int, *, activation: nn.Module):
        super().__init__()
        self.net = nn.ModuleList([nn.ModuleDict({"proj": nn.Linear(dim, hidden)}), activation, nn.Linear(hidden, dim)])

    def forward(self, x_BLD: torch.Tensor, normed_BLD: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """The tokens after it: x + gate * feed-forward(normed)."""
        first, activation, last = self.net
        return gated_result(x_BLD, *activated(last, activation, first["proj"](normed_BLD)), gate)


class SelfAttention(nn.Module):
    """Query, key and value projections; with norms over each head where `normed`, with an output where `projects`."""

    def __init__(self, dim: int, head_dim: int, *, normed: bool, projects: bool):
        super().__init__()
        self.head_dim, self.normed = head_dim, normed
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        if normed:
            self.norm_q, self.norm_k = (RmsNorm(head_dim, eps=EPS) for _ in range(2))
        if projects:
            self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def heads(self, x_BLD: torch.Tensor) -> Heads:
        norms = (self.norm_q, self.norm_k) if self.normed else None
        return split_heads(self.to_q(x_BLD), self.to_k(x_BLD), self.to_v(x_BLD), head_dim=self.head_dim, norms=norms)

    def project(self, x_BLD: torch.Tensor) -> torch.Tensor:
        return self.to_out[0](x_BLD)


class JointAttention(SelfAttention):
    """The projections of image tokens, and beside them those of text tokens."""

    def __init__(self, dim: int, head_dim: int):
        super().__init__(dim, head_dim, normed=True, projects=True)
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.norm_added_q, self.norm_added_k = (RmsNorm(head_dim, eps=EPS) for _ in range(2))
        self.to_add_out = nn.Linear(dim, dim)

    def text_heads(self, x_BLD: torch.Tensor) -> Heads:
        projected = (self.add_q_proj(x_BLD), self.add_k_proj(x_BLD), self.add_v_proj(x_BLD))
        return split_heads(*projected, head_dim=self.head_dim, norms=(self.norm_added_q, self.norm_added_k))


class HunyuanVideoTransformerBlock(DoubleStreamBlock):
    """A double-stream block. Its name is what LoRA tools of the world know it by."""

    def __init__(self, config: FramePackConfig, *, backend: str):
        super().__init__()
        self.backend = backend
        self.norm1, self.norm1_context = (Modulation(config.dim, 6) for _ in range(2))
        self.attn = JointAttention(config.dim, config.head_dim)
        self.ff, self.ff_context = (
            FeedForward(config.dim, config.ffn_dim, activation=nn.GELU(approximate="tanh")) for _ in range(2)
        )

    def streams(self) -> tuple[Stream, Stream]:
        return (
            Stream(self.norm1, self.attn.heads, self.attn.project, self.ff),
            Stream(self.norm1_context, self.attn.text_heads, self.attn.to_add_out, self.ff_context),
        )


class HunyuanVideoSingleTransformerBlock(nn.Module):
    """A single-stream block, over image and text tokens in one row. Its name is what LoRA tools know it by."""

    TOKENWISE = ("before_attention", "after_attention")
    LAST = ("after_attention",)

    def __init__(self, config: FramePackConfig, *, backend: str):
        super().__init__()
        self.backend = backend
        self.attn = SelfAttention(config.dim, config.head_dim, normed=True, projects=False)
        self.norm = Modulation(config.dim, 3)
        self.proj_mlp = nn.Linear(config.dim, config.ffn_dim)
        self.proj_out = nn.Linear(config.dim + config.ffn_dim, config.dim)

    def forward(
        self,
        x_BLD: torch.Tensor,
        vector_BD: torch.Tensor,
        cos_LD: torch.Tensor,
        sin_LD: torch.Tensor,
        key_lengths_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """All tokens after the block. The tables are for all of them."""
        return single_stream(
            x_BLD,
            vector_BD,
            cos_LD,
            sin_LD,
            key_lengths_B,
            modulation=self.norm,
            before=self.before_attention,
            after=self.after_attention,
            backend=self.backend,
        )

    def before_attention(
        self,
        x_BLD: torch.Tensor,
        cos_LD: torch.Tensor,
        sin_LD: torch.Tensor,
        *,
        shift: torch.Tensor,
        scale: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """q, k, v and the tokens that the feed-forward layer takes."""
        x_BLD = modulated(x_BLD, shift, scale)
        q, k, v = self.attn.heads(x_BLD)
        return rotate(q, cos_LD, sin_LD), rotate(k, cos_LD, sin_LD), v, x_BLD

    def after_attention(
        self, x_BLD: torch.Tensor, found_BLD: torch.Tensor, modulated_BLD: torch.Tensor, *, gate: torch.Tensor
    ) -> torch.Tensor:
        return gated_result(x_BLD, self.proj_out, activated_row(found_BLD, self.proj_mlp(modulated_BLD)), gate)


class RefinerBlock(nn.Module):
    """A block over text tokens alone, before they meet the image."""

    def __init__(self, config: FramePackConfig, *, backend: str):
        super().__init__()
        self.backend = backend
        self.norm1, self.norm2 = (Float32LayerNorm(config.dim, eps=EPS) for _ in range(2))
        self.attn = SelfAttention(config.dim, config.head_dim, normed=False, projects=True)
        self.ff = FeedForward(config.dim, config.refiner_ffn_dim, activation=nn.SiLU())
        self.norm_out = Modulation(config.dim, 2)

    def forward(self, x_BLD: torch.Tensor, vector_BD: torch.Tensor, key_lengths_B: torch.Tensor | None) -> torch.Tensor:
        return refiner_block(
            x_BLD,
            vector_BD,
            key_lengths_B,
            norms=(self.norm1, self.norm2),
            modulation=self.norm_out,
            heads=self.attn.heads,
            project=self.attn.project,
            feed_forward=self.ff,
            backend=self.backend,
        )
