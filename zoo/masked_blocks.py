"""Blocks for training on captions of different lengths, of HunyuanVideo and of FramePack: they compute the same.

The engine cuts the padding off and so runs attention sample by sample where lengths differ, and reads the lengths in
main memory. With hundreds of small samples a mask is far faster, and nothing waits for the GPU. A class here stands
before a family's block among the bases of a masked one. The weights and their names are the family's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.parts import mmdit

_NEVER = -30_000.0


def scores_of(mask_BL: Tensor, *, before: int = 0) -> Tensor:
    """What is added to attention scores, [B, 1, 1, before + L]: zero for `before` tokens and where the mask is true."""
    scores_BL = torch.zeros(mask_BL.shape, device=mask_BL.device).masked_fill(~mask_BL, _NEVER)
    return F.pad(scores_BL, (before, 0))[:, None, None]


def mean_of(text_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """The mean of the tokens where the mask is true, float32 [B, D]."""
    valid_BL1 = mask_BL.unsqueeze(-1)
    return (text_BLD.float() * valid_BL1).sum(dim=1) / valid_BL1.sum(dim=1)


def masked_attention(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, scores_B11L: Tensor | None) -> Tensor:
    """[B, L, D of all heads]. `scores_B11L`: None where every token counts."""
    q_BHLD, k_BHLD, v_BHLD = (part.transpose(1, 2) for part in (q_BLHD, k_BLHD, v_BLHD))
    scores_BHLL = (q_BHLD @ k_BHLD.transpose(2, 3)).float() * q_BHLD.shape[-1] ** -0.5
    if scores_B11L is not None:
        scores_BHLL = scores_BHLL + scores_B11L
    return (scores_BHLL.softmax(dim=-1).to(v_BHLD.dtype) @ v_BHLD).transpose(1, 2).flatten(2)


class MaskedDoubleStream(mmdit.DoubleStreamBlock):
    """Where the engine's takes the lengths of the keys, this takes their scores (`scores_of`)."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_lengths_B: Tensor | None) -> Tensor:
        return masked_attention(q, k, v, key_lengths_B)


class MaskedSingleStream(nn.Module):
    before_attention: Callable[..., tuple[Tensor, ...]]
    after_attention: Callable[..., Tensor]

    def gates(self, vector_BD: Tensor) -> tuple[Tensor, ...]:
        """Shift, scale and gate, by the family's layer."""
        raise NotImplementedError

    def forward(
        self, x_BLD: Tensor, vector_BD: Tensor, cos_LD: Tensor, sin_LD: Tensor, scores_B11L: Tensor | None = None
    ) -> Tensor:
        """All tokens, as the engine's."""
        shift, scale, gate = self.gates(vector_BD)
        *heads, handed_on_BLD = self.before_attention(x_BLD, cos_LD, sin_LD, shift=shift, scale=scale)
        return self.after_attention(x_BLD, masked_attention(*heads, scores_B11L), handed_on_BLD, gate=gate)
