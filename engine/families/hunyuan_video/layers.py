"""The layers of the HunyuanVideo DiT, under Tencent's names: embedders, token refiner, the two kinds of blocks, end.

The maths of blocks is in parts/mmdit; here is who owns which weights. Blocks take and return plain tensors, so that
they can be streamed, checkpointed and compiled on their own. What computes in float32 is said in model.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.activated import activated
from ...parts import mmdit
from ...parts.embeddings import Float32LayerNorm, Float32Linear, PatchConv3d, RmsNorm, gated_result, modulated_norm
from ...parts.mmdit import Heads, Layer, Modulation, Stream
from ...parts.rope import rotate
from .detect import HunyuanVideoConfig


class PatchEmbedder(nn.Module):
    """Latents to tokens."""

    def __init__(self, config: HunyuanVideoConfig):
        super().__init__()
        self.proj = PatchConv3d(config.in_dim, config.dim, patch_size=config.patch_size)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """[B, T, H, W, D] of the token grid."""
        return self.proj(x_BCTHW)


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int, activation: Layer):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.activation = activation

    def forward(self, x_BLD: Tensor, normed_BLD: Tensor, gate: Tensor) -> Tensor:
        """The tokens after it: x + gate * feed-forward(normed)."""
        return gated_result(x_BLD, *activated(self.fc2, self.activation, self.fc1(normed_BLD)), gate)


class ValueEmbedder(nn.Module):
    """A number for each sample (timestep, guidance) to a vector, float32 [B, D]."""

    def __init__(self, config: HunyuanVideoConfig):
        super().__init__()
        self.features = config.freq_dim
        self.mlp = nn.Sequential(
            Float32Linear(config.freq_dim, config.dim), nn.SiLU(), Float32Linear(config.dim, config.dim)
        )

    def forward(self, value_B: Tensor) -> Tensor:
        return self.mlp(mmdit.sine_features(value_B, dim=self.features))


class PooledEmbedder(nn.Module):
    """CLIP's pooled text to a vector, float32 [B, D]."""

    def __init__(self, config: HunyuanVideoConfig):
        super().__init__()
        self.in_layer = Float32Linear(config.pooled_dim, config.dim)
        self.out_layer = Float32Linear(config.dim, config.dim)

    def forward(self, pooled_BD: Tensor) -> Tensor:
        return mmdit.embed(self.in_layer, self.out_layer, pooled_BD)


class TextEmbedder(nn.Module):
    """The caption's mean to a vector, float32 [B, D]."""

    def __init__(self, config: HunyuanVideoConfig):
        super().__init__()
        self.linear_1 = Float32Linear(config.text_dim, config.dim)
        self.linear_2 = Float32Linear(config.dim, config.dim)

    def forward(self, mean_BD: Tensor) -> Tensor:
        return mmdit.embed(self.linear_1, self.linear_2, mean_BD)


class RefinerBlock(nn.Module):
    def __init__(self, config: HunyuanVideoConfig, *, backend: str):
        super().__init__()
        self.head_dim, self.backend = config.head_dim, backend
        self.norm1 = Float32LayerNorm(config.dim, eps=mmdit.EPS)
        self.self_attn_qkv = nn.Linear(config.dim, 3 * config.dim)
        self.self_attn_proj = nn.Linear(config.dim, config.dim)
        self.norm2 = Float32LayerNorm(config.dim, eps=mmdit.EPS)
        self.mlp = FeedForward(config.dim, config.refiner_ffn_dim, F.silu)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Float32Linear(config.dim, 2 * config.dim))

    def _gates(self, vector_BD: Tensor) -> tuple[Tensor, ...]:
        return self.adaLN_modulation(vector_BD).unsqueeze(1).chunk(2, dim=-1)

    def _heads(self, x_BLD: Tensor) -> Heads:
        return mmdit.split_heads(*self.self_attn_qkv(x_BLD).chunk(3, dim=-1), head_dim=self.head_dim)

    def forward(self, x_BLD: Tensor, vector_BD: Tensor, key_lengths_B: Tensor | None) -> Tensor:
        return mmdit.refiner_block(
            x_BLD,
            vector_BD,
            key_lengths_B,
            norms=(self.norm1, self.norm2),
            modulation=self._gates,
            heads=self._heads,
            project=self.self_attn_proj,
            feed_forward=self.mlp,
            backend=self.backend,
        )


class RefinerBlocks(nn.Module):
    def __init__(self, config: HunyuanVideoConfig, *, backend: str):
        super().__init__()
        self.blocks = nn.ModuleList(RefinerBlock(config, backend=backend) for _ in range(config.num_refiner_blocks))

    def forward(self, x_BLD: Tensor, vector_BD: Tensor, key_lengths_B: Tensor | None) -> Tensor:
        for block in self.blocks:
            x_BLD = block(x_BLD, vector_BD, key_lengths_B)
        return x_BLD


class TokenRefiner(nn.Module):
    """LLaMA's hidden states to text tokens: they attend to each other, steered by time and by their own mean."""

    def __init__(self, config: HunyuanVideoConfig, *, backend: str):
        super().__init__()
        self.input_embedder = nn.Linear(config.text_dim, config.dim)
        self.t_embedder = ValueEmbedder(config)
        self.c_embedder = TextEmbedder(config)
        self.individual_token_refiner = RefinerBlocks(config, backend=backend)

    def forward(self, text_BLD: Tensor, timestep_B: Tensor, lengths: Sequence[int]) -> Tensor:
        """[B, L, text_dim], the first `lengths[i]` tokens of each valid, to [B, L, D]. Beyond them: no meaning."""
        vector_BD = self.t_embedder(timestep_B) + self.c_embedder(mmdit.mean_of_valid(text_BLD, lengths))
        return self.individual_token_refiner(self.input_embedder(text_BLD), vector_BD, mmdit.key_lengths(lengths))


class MMDoubleStreamBlock(mmdit.DoubleStreamBlock):
    """LoRA files and tools of the world know it by its name."""

    def __init__(self, config: HunyuanVideoConfig, *, backend: str):
        super().__init__()
        self.head_dim, self.backend = config.head_dim, backend
        gelu = nn.GELU(approximate="tanh")
        self.img_mod = Modulation(config.dim, 6)
        self.img_attn_qkv = nn.Linear(config.dim, 3 * config.dim)
        self.img_attn_q_norm = RmsNorm(config.head_dim, eps=mmdit.EPS)
        self.img_attn_k_norm = RmsNorm(config.head_dim, eps=mmdit.EPS)
        self.img_attn_proj = nn.Linear(config.dim, config.dim)
        self.img_mlp = FeedForward(config.dim, config.ffn_dim, gelu)
        self.txt_mod = Modulation(config.dim, 6)
        self.txt_attn_qkv = nn.Linear(config.dim, 3 * config.dim)
        self.txt_attn_q_norm = RmsNorm(config.head_dim, eps=mmdit.EPS)
        self.txt_attn_k_norm = RmsNorm(config.head_dim, eps=mmdit.EPS)
        self.txt_attn_proj = nn.Linear(config.dim, config.dim)
        self.txt_mlp = FeedForward(config.dim, config.ffn_dim, gelu)

    def _image_heads(self, x_BLD: Tensor) -> Heads:
        norms = self.img_attn_q_norm, self.img_attn_k_norm
        return mmdit.split_heads(*self.img_attn_qkv(x_BLD).chunk(3, dim=-1), head_dim=self.head_dim, norms=norms)

    def _text_heads(self, x_BLD: Tensor) -> Heads:
        norms = self.txt_attn_q_norm, self.txt_attn_k_norm
        return mmdit.split_heads(*self.txt_attn_qkv(x_BLD).chunk(3, dim=-1), head_dim=self.head_dim, norms=norms)

    def streams(self) -> tuple[Stream, Stream]:
        return (
            Stream(self.img_mod, self._image_heads, self.img_attn_proj, self.img_mlp),
            Stream(self.txt_mod, self._text_heads, self.txt_attn_proj, self.txt_mlp),
        )


class MMSingleStreamBlock(nn.Module):
    """Image and text as one row of tokens; attention and feed-forward share two layers. Known by its name too."""

    TOKENWISE = ("before_attention", "after_attention")
    LAST = ("after_attention",)

    def __init__(self, config: HunyuanVideoConfig, *, backend: str):
        super().__init__()
        self.head_dim, self.backend = config.head_dim, backend
        self.sizes = (config.dim, config.dim, config.dim, config.ffn_dim)
        self.linear1 = nn.Linear(config.dim, sum(self.sizes))
        self.linear2 = nn.Linear(config.dim + config.ffn_dim, config.dim)
        self.q_norm = RmsNorm(config.head_dim, eps=mmdit.EPS)
        self.k_norm = RmsNorm(config.head_dim, eps=mmdit.EPS)
        self.modulation = Modulation(config.dim, 3)

    def before_attention(
        self, x_BLD: Tensor, cos_LD: Tensor, sin_LD: Tensor, *, shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, ...]:
        """q, k, v and the feed-forward layer's hidden values."""
        *qkv, hidden = self.linear1(mmdit.modulated(x_BLD, shift, scale)).split(self.sizes, dim=-1)
        q, k, v = mmdit.split_heads(*qkv, head_dim=self.head_dim, norms=(self.q_norm, self.k_norm))
        return rotate(q, cos_LD, sin_LD), rotate(k, cos_LD, sin_LD), v, hidden

    def after_attention(self, x_BLD: Tensor, found_BLD: Tensor, hidden_BLD: Tensor, *, gate: Tensor) -> Tensor:
        return gated_result(x_BLD, self.linear2, mmdit.activated_row(found_BLD, hidden_BLD), gate)

    def forward(
        self,
        x_BLD: Tensor,
        vector_BD: Tensor,
        cos_LD: Tensor,
        sin_LD: Tensor,
        key_lengths_B: Tensor | None = None,
    ) -> Tensor:
        return mmdit.single_stream(
            x_BLD,
            vector_BD,
            cos_LD,
            sin_LD,
            key_lengths_B,
            modulation=self.modulation,
            before=self.before_attention,
            after=self.after_attention,
            backend=self.backend,
        )


class FinalLayer(nn.Module):
    """Image tokens to patch values, float32."""

    def __init__(self, config: HunyuanVideoConfig):
        super().__init__()
        cells = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
        self.linear = Float32Linear(config.dim, cells * config.out_dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Float32Linear(config.dim, 2 * config.dim))

    def forward(self, x_BLD: Tensor, vector_BD: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vector_BD).unsqueeze(1).chunk(2, dim=-1)
        return self.linear(modulated_norm(x_BLD, shift, scale, eps=mmdit.EPS))
