"""The Wan DiT for training on short captions: what it computes is the same, the padding costs nothing.

Wan pads every caption to 512 tokens of zeros and lets the video attend to them. All these tokens have one key and one
value; so one of them can stand for n when the logarithm of n is added to its score. With captions of thirty tokens this
saves half of all arithmetic of a small model. The weights and their names are the engine's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from engine.families.wan.detect import WanConfig
from engine.families.wan.layers import CrossAttention
from engine.families.wan.model import WanModel
from engine.ops.attention import attention


class CountedCrossAttention(CrossAttention):
    """Cross-attention whose last text token stands for all padding that is not there."""

    def filled(self, text_BLHD: Tensor) -> Tensor:
        return text_BLHD

    def forward(self, x_BLD: Tensor, seen: Sequence[Sequence[Tensor]]) -> Tensor:
        q_BLHD = self.heads(self.norm_q(self.q(x_BLD)))
        (k_BLHD, v_BLHD), *images = seen
        found_BLHD = self._counted(q_BLHD, k_BLHD, v_BLHD)
        for image_k_BLHD, image_v_BLHD in images:
            found_BLHD = found_BLHD + attention(q_BLHD, image_k_BLHD, image_v_BLHD, backend=self.backend)
        return self.o(found_BLHD.flatten(2))

    def _counted(self, q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
        tokens = k_BLHD.shape[1]
        q_BHLD, k_BHLD, v_BHLD = (part.transpose(1, 2) for part in (q_BLHD, k_BLHD, v_BLHD))
        scores_BHLL = (q_BHLD @ k_BHLD.transpose(2, 3)).float() * q_BHLD.shape[-1] ** -0.5
        extra_L = functional.pad(scores_BHLL.new_zeros(tokens - 1), (0, 1), value=math.log(self.text_len - tokens + 1))
        weights_BHLL = (scores_BHLL + extra_L).softmax(dim=-1).to(v_BHLD.dtype)
        return (weights_BHLL @ v_BHLD).transpose(1, 2)


class CountedWan(WanModel):
    """`WanModel` for captions of less than 512 tokens, which may be one tensor [B, L, text_dim], padded with zeros."""

    def __init__(self, config: WanConfig, *, attention_backend: str = "auto"):
        super().__init__(config, attention_backend=attention_backend)
        for block in self.blocks:
            block.cross_attn = CountedCrossAttention(config, backend=attention_backend)

    def _padded(self, text: Tensor | Sequence[Tensor]) -> Tensor:
        text_BLD = text if isinstance(text, Tensor) else as_padded(text)
        return functional.pad(text_BLD.to(self.dtype), (0, 0, 0, 1))


def as_padded(states: Sequence[Tensor]) -> Tensor:
    """Captions of different lengths, [L, D] each, as one tensor filled up with zeros."""
    return torch.nn.utils.rnn.pad_sequence(list(states), batch_first=True)
