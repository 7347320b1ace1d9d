"""What turns latents, history, text, image features and times into tokens and vectors; and where tokens are in time.

Names are the published checkpoint's. Knows no blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

from ...parts.embeddings import Float32Linear, PatchConv3d
from ...parts.mmdit import FREQUENCIES, embed, key_lengths, mean_of_valid, pad_text, sine_features
from ...parts.rope import Table, framepack_table
from .detect import FramePackConfig
from .layers import RefinerBlock

HISTORY_SCALES = (1, 2, 4)
"""How many times as large as the section's own patches those of its history are, per axis; in time too."""
GUIDANCE_UNITS = 1000.0
"""The models were trained on guidance times 1000."""

Patch = tuple[int, int, int]


class PatchEmbedding(nn.Module):
    """Latents to tokens: [B, C, T, H, W] to [B, L, D], in t, h, w row-major order."""

    def __init__(self, channels: int, dim: int, *, patch_size: Patch):
        super().__init__()
        self.proj = PatchConv3d(channels, dim, patch_size=patch_size)

    def forward(self, x_BCTHW: torch.Tensor) -> torch.Tensor:
        return self.proj(x_BCTHW).flatten(1, 3)


class HistoryEmbedding(nn.Module):
    """Clean latents to tokens, the older the larger the patch. Sizes that do not divide repeat their last values."""

    def __init__(self, channels: int, dim: int, *, patch_size: Patch):
        super().__init__()
        self.proj, self.proj_2x, self.proj_4x = (
            PatchConv3d(channels, dim, patch_size=(t * scale, h * scale, w * scale))
            for scale in HISTORY_SCALES
            for t, h, w in [patch_size]
        )

    def forward(self, history: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Latents [B, C, T, H, W] (or None) for each of HISTORY_SCALES to tokens [B, L, D] (or None)."""
        layers = (self.proj, self.proj_2x, self.proj_4x)
        return [
            None if x is None else layer(_filled(x, layer.kernel_size)).flatten(1, 3)
            for layer, x in zip(layers, history, strict=True)
        ]


class ImageProjection(nn.Module):
    """SigLIP features to tokens of the DiT's width."""

    def __init__(self, image_dim: int, dim: int):
        super().__init__()
        self.up = nn.Linear(image_dim, 3 * dim)
        self.down = nn.Linear(3 * dim, dim)

    def forward(self, image_BLD: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.up(image_BLD)))


class TwoLayers(nn.Module):
    """linear, SiLU, linear, in float32."""

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.linear_1, self.linear_2 = Float32Linear(width, dim), Float32Linear(dim, dim)

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        return embed(self.linear_1, self.linear_2, x_BD)


class ConditionEmbedding(nn.Module):
    """Timestep, pooled text and (where the model has it) guidance to one vector: float32 [B, D]."""

    def __init__(self, pooled_dim: int, dim: int, *, has_guidance: bool):
        super().__init__()
        self.timestep_embedder = TwoLayers(FREQUENCIES, dim)
        if has_guidance:
            self.guidance_embedder = TwoLayers(FREQUENCIES, dim)
        self.text_embedder = TwoLayers(pooled_dim, dim)

    def forward(
        self, timestep_B: torch.Tensor, pooled_BD: torch.Tensor, guidance_scale: float | torch.Tensor | None = None
    ) -> torch.Tensor:
        vector_BD = self.timestep_embedder(sine_features(timestep_B)) + self.text_embedder(pooled_BD.float())
        if guidance_scale is not None and hasattr(self, "guidance_embedder"):
            guidance_B = torch.ones_like(timestep_B, dtype=torch.float32) * guidance_scale * GUIDANCE_UNITS
            vector_BD = vector_BD + self.guidance_embedder(sine_features(guidance_B))
        return vector_BD


class TokenRefiner(nn.Module):
    def __init__(self, config: FramePackConfig, *, backend: str):
        super().__init__()
        self.refiner_blocks = nn.ModuleList(
            RefinerBlock(config, backend=backend) for _ in range(config.num_refiner_layers)
        )


class TextEmbedding(nn.Module):
    """LLaMA states to tokens, refined among themselves under the timestep and the mean of the text."""

    def __init__(self, config: FramePackConfig, *, backend: str):
        super().__init__()
        self.time_text_embed = ConditionEmbedding(config.text_dim, config.dim, has_guidance=False)
        self.proj_in = nn.Linear(config.text_dim, config.dim)
        self.token_refiner = TokenRefiner(config, backend=backend)

    def forward(self, text: Sequence[torch.Tensor], timestep_B: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        """[L, width] for each sample to [B, longest L, D], and the lengths. What lies behind a length means nothing."""
        text_BLD, lengths = pad_text(text, dtype=self.proj_in.weight.dtype)
        vector_BD = self.time_text_embed(timestep_B, mean_of_valid(text_BLD, lengths))
        x_BLD, key_lengths_B = self.proj_in(text_BLD), key_lengths(lengths)
        for block in self.token_refiner.refiner_blocks:
            x_BLD = block(x_BLD, vector_BD, key_lengths_B)
        return x_BLD, lengths


Rows = Sequence[Sequence[int]]


def packed_table(
    places: Sequence[Rows | None],
    *,
    height: int,
    width: int,
    axes: tuple[int, int, int],
    theta: float,
    timestep_B: torch.Tensor,
    scaling: tuple[float, float] | None = None,
) -> Table:
    """The rotary table of a section with its history: two of [L, D/2], or of [B, L, D/2] where samples differ.

    `places` are those in time of the section's latent frames, then of history for HISTORY_SCALES (None: there is
    none), a row for each sample or one for all; height and width count tokens. `scaling` (factor, threshold)
    multiplies positions in h and w by factor for samples at a timestep (0..1000) of threshold or later. It chooses on
    the device, which nobody has to wait for.
    """
    count = max(len(rows) for rows in places if rows is not None)
    columns = [[None] * count if rows is None else _row_each(rows, count) for rows in places]
    samples = list(zip(*columns, strict=True))
    samples = samples[:1] if len(set(samples)) == 1 else samples

    def made(side_scale: float) -> Table:
        tables = [
            _sample_table(
                sample, height=height, width=width, axes=axes, theta=theta, side_scale=side_scale,
                device=timestep_B.device,
            )
            for sample in samples
        ]  # fmt: skip
        if len(tables) == 1:
            return tables[0]
        cosines, sines = zip(*tables, strict=True)
        return torch.stack(cosines), torch.stack(sines)

    plain = made(1.0)
    if scaling is None:
        return plain
    factor, threshold = scaling
    late_B11 = (timestep_B >= threshold).view(-1, 1, 1)
    cos, sin = (torch.where(late_B11, *pair) for pair in zip(made(factor), plain, strict=True))
    return cos, sin


def _row_each(rows: Rows, count: int) -> list[tuple[int, ...]]:
    return [tuple(row) for row in (rows if len(rows) == count else [rows[0]] * count)]


@lru_cache(maxsize=32)
def _sample_table(
    sample: tuple[tuple[int, ...] | None, ...],
    *,
    height: int,
    width: int,
    axes: tuple[int, int, int],
    theta: float,
    side_scale: float,
    device: torch.device,
) -> Table:
    """One sample's table, kept for the sections and sizes in use. Largest patches first, the section last."""
    own, *history = sample
    parts = [(places, scale) for places, scale in zip(history, HISTORY_SCALES, strict=True) if places is not None]
    with torch.inference_mode(False):  # a table first made while sampling must serve training too
        tables = [
            framepack_table(
                places, height=height, width=width, pool=(scale, scale, scale), axes=axes, theta=theta,
                side_scale=side_scale,
            )
            for places, scale in [*reversed(parts), (own, 1)]
        ]  # fmt: skip
        cosines, sines = zip(*tables, strict=True)
        return torch.cat(cosines).to(device), torch.cat(sines).to(device)


def _filled(x_BCTHW: torch.Tensor, step: Sequence[int]) -> torch.Tensor:
    """Lengthened to multiples of `step` by repeating the last values along t, h and w."""
    rest = [-size % wanted for size, wanted in zip(x_BCTHW.shape[2:], step, strict=True)]
    return F.pad(x_BCTHW, (0, rest[2], 0, rest[1], 0, rest[0]), mode="replicate") if any(rest) else x_BCTHW
