"""HunyuanVideo's DiT, LLaMA and CLIP as the network that `train_dit` trains: noisy latents and token ids to velocity.

Token ids are those that clips are drawn with; what the text encoders see of them is what the engine shows them of the
same captions. Knows no files.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from engine.families.hunyuan_video.model import embedded_guidance
from engine.parts.tokenizers import Tokenizer

from . import pocket_hunyuan
from .data import padded_ids
from .hunyuan_words import Words
from .masked_hunyuan import MaskedHunyuan

PLAIN = 1.0
"""The embedded guidance that a model is told which was not distilled from a guided one."""


class HunyuanText(nn.Module):
    """Both text encoders."""

    def __init__(self, llama: nn.Module, clip: nn.Module, words: Words) -> None:
        super().__init__()
        self.llama, self.clip, self.words = llama, clip, words

    def forward(self, ids_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States [B, L, D] of the caption's tokens and its end, which of them count [B, L], CLIP's pooled vector."""
        mask_BL = ids_BL != 0
        llama_ids_BL, clip_ids_BL = self.words.llama(ids_BL), self.words.clip(ids_BL)
        states_BLD = self.llama(input_ids=llama_ids_BL, attention_mask=_causal(llama_ids_BL)).last_hidden_state
        clip_BLD = self.clip(input_ids=clip_ids_BL, attention_mask=_causal(clip_ids_BL)).last_hidden_state
        end_B11 = mask_BL.sum(dim=1)[:, None, None].expand(-1, 1, clip_BLD.shape[2])
        return states_BLD[:, self.words.before :], mask_BL, clip_BLD.gather(1, end_B11).squeeze(1)


def _causal(ids_BL: Tensor) -> Tensor:
    """[1, 1, L, L], ready for the layers: with less, the library would ask the GPU whether a mask is needed."""
    length = ids_BL.shape[1]
    return torch.ones(1, 1, length, length, dtype=torch.bool, device=ids_BL.device).tril()


class HunyuanPocket(nn.Module):
    """DiT and text encoders. `cond`: "ids" [B, L], and "guidance" [B] (times 1000) where it is not PLAIN."""

    def __init__(self, dit: MaskedHunyuan, text: HunyuanText) -> None:
        super().__init__()
        self.dit, self.text = dit, text

    def velocity(self, x_BCTHW: Tensor, timestep_B: Tensor, cond: dict[str, Any]) -> Tensor:
        text_BLD, mask_BL, pooled_BD = self.text(cond["ids"])
        guidance_B = cond.get("guidance")
        if guidance_B is None:
            guidance_B = embedded_guidance(PLAIN, count=len(x_BCTHW), device=x_BCTHW.device)
        return self.dit(x_BCTHW, timestep_B, text_BLD, mask_BL, pooled_BD=pooled_BD, guidance_B=guidance_B)


def new_text(sizes: pocket_hunyuan.Sizes, drawn: Tokenizer) -> HunyuanText:
    """Untrained, on the CPU. `drawn`: the tokenizer of the clips' captions."""
    return HunyuanText(pocket_hunyuan.new_llama(sizes.text), pocket_hunyuan.new_clip(sizes.text), Words(drawn))


def new_pocket(sizes: pocket_hunyuan.Sizes, drawn: Tokenizer) -> HunyuanPocket:
    """All networks untrained, on the CPU."""
    return HunyuanPocket(pocket_hunyuan.new_dit(sizes.dit), new_text(sizes, drawn))


def without_caption(drawn: Tokenizer) -> Tensor:
    """Token ids of an empty caption, [1, L]: HunyuanVideo's negative prompt is empty."""
    return torch.from_numpy(padded_ids(drawn, "")).long()[None]
