"""Maths of the DiTs that carry image and text tokens side by side: double-stream, single-stream and refiner blocks.

In a double-stream block image and text have layers of their own and meet in one attention; in a single-stream block
they are one sequence of tokens, image first. Only image tokens are rotated. Families differ in what they call the
layers and in whether projections are fused, so functions here take the layers (`Stream` lists those of a stream), and a
family's modules keep their checkpoint's names.
Sources: Stable Diffusion 3 (arXiv 2403.03206) for the two streams, HunyuanVideo (arXiv 2412.03603) for the refiner.
Norms, modulation and sums compute in float32, everything else in the weights' type; the residual stream has that type.
Knows no checkpoint and no family. Given up: dense attention masks (valid text comes first and is counted instead).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.attention import attention
from .embeddings import Float32Linear, gated_sum, modulated_norm
from .rope import Table, hunyuan_table, rotate

EPS = 1e-6
"""Of every norm in these models."""
FREQUENCIES = 256
"""Width of the sine features of timestep and guidance, in all published checkpoints."""

Layer = Callable[[Tensor], Tensor]
FeedForward = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(tokens, the same normed, gate) -> the tokens plus the gated output of the layer for the normed ones."""


class Heads(NamedTuple):
    """Query, key and value, each [B, L, heads, D of a head]; query and key are normalised already."""

    q: Tensor
    k: Tensor
    v: Tensor


class Stream(NamedTuple):
    """What one stream of a double-stream block is made of. Callables take and return [B, L, D]."""

    modulation: Modulation
    heads: Callable[[Tensor], Heads]
    project: Layer
    feed_forward: FeedForward


class Modulation(nn.Module):
    """The conditioning vector to `parts` vectors (shift, scale, gate …): linear(silu(vector)). Parameter: `linear`.

    The product is in the weights' type; the result is widened to float32, in which norms and sums compute.
    """

    def __init__(self, dim: int, parts: int):
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(dim, parts * dim)

    def forward(self, vector_BD: Tensor) -> tuple[Tensor, ...]:
        """`parts` tensors, float32 [B, 1, D]."""
        made = self.linear(F.silu(vector_BD).to(self.linear.bias.dtype))
        return made.float().unsqueeze(1).chunk(self.parts, dim=-1)


def sine_features(value_B: Tensor, *, dim: int = FREQUENCIES) -> Tensor:
    """cos then sin of a value at dim/2 frequencies 10000^(-i/(dim/2)): float32 [B, dim].

    In float32 on purpose, phases included: guidance (times 1000) reaches several thousand, where float32 phases are off
    by 4e-4, and the published models were trained with these values. Hence not `embeddings.timestep_features`.
    """
    half = dim // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32, device=value_B.device) * -math.log(10000.0) / half)
    angles = value_B.float().unsqueeze(1) * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def embed(first: Float32Linear, second: Float32Linear, x_BD: Tensor) -> Tensor:
    """second(silu(first(x))), the small networks that embed time, guidance and pooled text; float32 [B, D]."""
    return second(F.silu(first(x_BD)))


def split_heads(
    q_BLD: Tensor, k_BLD: Tensor, v_BLD: Tensor, *, head_dim: int, norms: tuple[Layer, Layer] | None = None
) -> Heads:
    """Projected tokens as heads; `norms` are those of query and key, over a head's columns."""
    q, k, v = (part.unflatten(-1, (-1, head_dim)) for part in (q_BLD, k_BLD, v_BLD))
    return Heads(q, k, v) if norms is None else Heads(norms[0](q), norms[1](k), v)


class DoubleStreamBlock(nn.Module):
    """Image and text with layers of their own, one attention. A family's block has the layers; `streams` lists them."""

    TOKENWISE = ("image_before", "text_before", "image_after", "text_after")
    LAST = ("image_after", "text_after")

    backend: str

    def streams(self) -> tuple[Stream, Stream]:
        """The image's and the text's."""
        raise NotImplementedError

    def forward(
        self,
        image_BLD: Tensor,
        text_BLD: Tensor,
        vector_BD: Tensor,
        cos_LD: Tensor,
        sin_LD: Tensor,
        key_lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(image, text). `vector_BD` float32.

        `cos_LD`, `sin_LD`: [L, D/2] or [B, L, D/2], for the image tokens; rows for further tokens are ignored.
        `key_lengths_B`: image tokens + valid text tokens of each sample (on the CPU); None: all are valid.
        """
        count = image_BLD.shape[1]
        cos_LD, sin_LD = cos_LD[..., :count, :], sin_LD[..., :count, :]
        (shift, scale, *image_rest), (text_shift, text_scale, *text_rest) = (
            stream.modulation(vector_BD) for stream in self.streams()
        )
        image = self.image_before(image_BLD, cos_LD, sin_LD, shift=shift, scale=scale)
        text = self.text_before(text_BLD, shift=text_shift, scale=text_scale)
        q, k, v = (torch.cat(both, dim=1) for both in zip(image, text, strict=True))
        del image, text
        found_BLD = self.attend(q, k, v, key_lengths_B)
        del q, k, v  # not needed while the widest layers run
        image_BLD = self.image_after(image_BLD, found_BLD[:, :count], modulation=image_rest)
        return image_BLD, self.text_after(text_BLD, found_BLD[:, count:], modulation=text_rest)

    def modulated(self, image_BLD: Tensor, vector_BD: Tensor) -> Tensor:
        """The image tokens as the block's attention layers see them, without running the block."""
        shift, scale, *_ = self.streams()[0].modulation(vector_BD)
        return modulated(image_BLD, shift, scale)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_lengths_B: Tensor | None) -> Tensor:
        """Attention of all tokens to all tokens, [B, L, D]."""
        return attention(q, k, v, key_lengths_B=key_lengths_B, backend=self.backend).flatten(2)

    def image_before(self, x_BLD: Tensor, cos_LD: Tensor, sin_LD: Tensor, *, shift: Tensor, scale: Tensor) -> Heads:
        q, k, v = self.streams()[0].heads(modulated(x_BLD, shift, scale))
        return Heads(rotate(q, cos_LD, sin_LD), rotate(k, cos_LD, sin_LD), v)

    def text_before(self, x_BLD: Tensor, *, shift: Tensor, scale: Tensor) -> Heads:
        return self.streams()[1].heads(modulated(x_BLD, shift, scale))

    def image_after(self, x_BLD: Tensor, found_BLD: Tensor, *, modulation: Sequence[Tensor]) -> Tensor:
        return _updated(self.streams()[0], x_BLD, found_BLD, modulation)

    def text_after(self, x_BLD: Tensor, found_BLD: Tensor, *, modulation: Sequence[Tensor]) -> Tensor:
        return _updated(self.streams()[1], x_BLD, found_BLD, modulation)


def single_stream(
    x_BLD: Tensor,
    vector_BD: Tensor,
    cos_LD: Tensor,
    sin_LD: Tensor,
    key_lengths_B: Tensor | None,
    *,
    modulation: Modulation,
    before: Callable[..., tuple[Tensor, ...]],
    after: Callable[..., Tensor],
    backend: str,
) -> Tensor:
    """Tokens (image, then text) after one single-stream block: attention and feed-forward side by side.

    `before(x, cos, sin, shift=, scale=)` returns q, k, v and one more tensor, which is passed on, with the attention's
    result, to `after(x, found, that, gate=)`. `cos_LD`, `sin_LD` are for all tokens: see `with_text`.
    """
    shift, scale, gate = modulation(vector_BD)
    q, k, v, handed_on_BLD = before(x_BLD, cos_LD, sin_LD, shift=shift, scale=scale)
    found_BLD = attention(q, k, v, key_lengths_B=key_lengths_B, backend=backend).flatten(2)
    del q, k, v  # not needed while the widest layer runs
    return after(x_BLD, found_BLD, handed_on_BLD, gate=gate)


def activated_row(found_BLD: Tensor, hidden_BLD: Tensor) -> Tensor:
    """Each token's attention result and activated hidden values side by side, for a single-stream block's last
    layer."""
    return torch.cat([found_BLD, F.gelu(hidden_BLD, approximate="tanh")], dim=-1)


def refiner_block(
    x_BLD: Tensor,
    vector_BD: Tensor,
    key_lengths_B: Tensor | None,
    *,
    norms: tuple[Layer, Layer],
    modulation: Callable[[Tensor], tuple[Tensor, ...]],
    heads: Callable[[Tensor], Heads],
    project: Layer,
    feed_forward: FeedForward,
    backend: str,
) -> Tensor:
    """Text tokens after one block of the token refiner: self-attention and feed-forward, each modulated by a gate
    alone."""
    attention_gate, feed_forward_gate = modulation(vector_BD)
    found_BLHD = attention(*heads(norms[0](x_BLD)), key_lengths_B=key_lengths_B, backend=backend)
    x_BLD = gated_sum(x_BLD, project(found_BLHD.flatten(2)), attention_gate)
    return feed_forward(x_BLD, norms[1](x_BLD), feed_forward_gate)


def mean_of_valid(text_BLD: Tensor, lengths: Sequence[int]) -> Tensor:
    """The mean of the first `lengths[i]` tokens of each sample: float32 [B, D]."""
    return torch.stack([row[:length].float().mean(dim=0) for row, length in zip(text_BLD, lengths, strict=True)])


def pad_text(text: Sequence[Tensor], *, dtype: torch.dtype) -> tuple[Tensor, list[int]]:
    """Captions, [L, D] each, as one [B, longest, D] with zeros after their ends, and their lengths. None may be
    empty."""
    lengths = [len(sample) for sample in text]
    if min(lengths) < 1:
        raise ValueError(f"captions of {lengths} tokens: each needs at least one")
    return nn.utils.rnn.pad_sequence([sample.to(dtype) for sample in text], batch_first=True), lengths


def key_lengths(lengths: Sequence[int], *, before: int = 0) -> Tensor | None:
    """For `ops.attention`: `before` tokens and the valid text of each sample; None if all samples are equally long.

    A CPU tensor, so that reading it never waits for a GPU.
    """
    if len(set(lengths)) == 1:
        return None
    return torch.tensor(lengths) + before


@lru_cache(maxsize=8)
def cached_table(
    grid: tuple[int, int, int], *, axes: tuple[int, int, int], theta: float = 256.0, device: torch.device
) -> Table:
    """`rope.hunyuan_table` on a device, kept for the grids in use (a bucketed dataset has several)."""
    with torch.inference_mode(False):  # a table first made while sampling must serve training too
        cos, sin = hunyuan_table(grid, axes=axes, theta=theta)
        return cos.to(device), sin.to(device)


def with_text(table: Table, count: int) -> Table:
    """A table of image tokens, [L, D/2] or [B, L, D/2], extended by `count` text tokens that are not rotated."""
    cos, sin = table
    return F.pad(cos, (0, 0, 0, count), value=1.0), F.pad(sin, (0, 0, 0, count))


def from_patches(values_BLP: Tensor, grid: Sequence[int], patch: Sequence[int]) -> Tensor:
    """Tokens of (channel, pt, ph, pw) values in t, h, w order back to [B, C, T, H, W]; `grid` counts tokens."""
    cells = values_BLP.unflatten(2, (-1, *patch)).unflatten(1, tuple(grid))
    sizes = (count * side for count, side in zip(grid, patch, strict=True))
    return cells.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(len(values_BLP), cells.shape[4], *sizes)


def modulated(x_BLD: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """The norm of tokens, scaled and shifted, in x's dtype. shift, scale: float32 [B, 1, D]."""
    return modulated_norm(x_BLD, shift, scale, eps=EPS).to(x_BLD.dtype)


def _updated(stream: Stream, x_BLD: Tensor, found_BLD: Tensor, modulation: Sequence[Tensor]) -> Tensor:
    """The rest of a stream's block after attention: its gated sum, then the gated feed-forward layer."""
    gate, shift, scale, feed_forward_gate = modulation
    x_BLD = gated_sum(x_BLD, stream.project(found_BLD), gate)
    return stream.feed_forward(x_BLD, modulated(x_BLD, shift, scale), feed_forward_gate)
