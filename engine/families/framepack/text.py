"""Captions to FramePack's conditioning: LLaMA's states, padded to 512 tokens with a mask, and CLIP-L's pooled vector.

The encoders are `parts.llama_text` and `parts.clip_text`; this file says which of their results a cache keeps.
Given up: nothing; a mask and padding are kept because caches of musubi-tuner have them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...parts import clip_text, llama_text
from ...parts.clip_text import ClipText
from ...parts.llama_text import LlamaText
from ...parts.tokenizers import TokenCount
from ...parts.weights import WeightFile, open_weights
from ..values import Files
from .detect import check_role

CACHE_TOKENS = 512
"""Length to which LLaMA's states are padded; of a caption no more than `TEXT_TOKENS` are read."""


@dataclass
class TextEncoders:
    """Both models; `system_prompt` None is the published description of what to look at."""

    llama: LlamaText
    clip: ClipText
    system_prompt: str | None = None


def load(
    files: Files,
    *,
    device: torch.device | str,
    fp8: bool = False,
    system_prompt: str | None = None,
    tokenizer: tuple[str | None, str | None] = (None, None),
) -> TextEncoders:
    """The encoders in `files["text_encoder1"]` and `["text_encoder2"]`, in float16 (float32 on a CPU).

    `fp8` is --fp8_llm, `system_prompt` --custom_system_prompt, `tokenizer` --tokenizer1 and --tokenizer2 (None: looked
    for offline). Raises WeightsError.
    """
    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.float16
    llama_file = _open(files, "text_encoder1", "text-encoder")
    clip_file = _open(files, "text_encoder2", "clip-text-encoder")
    clip = clip_text.load(clip_file, device=device, dtype=dtype, tokenizer=tokenizer[1], tokenizer_flag="--tokenizer2")
    llama = llama_text.load(
        llama_file, device=device, dtype=dtype, fp8=fp8, tokenizer=tokenizer[0], tokenizer_flag="--tokenizer1"
    )
    return TextEncoders(llama, clip, system_prompt)


def encode(encoder: TextEncoders, captions: list[str]) -> list[dict[str, Tensor]]:
    """For each caption "llama_vec" [512, 4096], "llama_attention_mask" [512] (bool) and "clip_l_pooler" [768].

    The floating-point ones are float16, as caches have them; an empty caption counts one token.
    """
    states = llama_text.encode(encoder.llama, captions, system_prompt=encoder.system_prompt)
    pooled_BD = clip_text.encode(encoder.clip, captions)
    return [_cached(states_LD, pooled_D) for states_LD, pooled_D in zip(states, pooled_BD, strict=True)]


def token_counts(encoder: TextEncoders, captions: list[str]) -> list[TokenCount]:
    """How many tokens each caption has for LLaVA-LLaMA-3, and how many it reads (llama_text.py)."""
    return llama_text.token_counts(encoder.llama.tokenizer, captions, system_prompt=encoder.system_prompt)


def _cached(states_LD: Tensor, pooled_D: Tensor) -> dict[str, Tensor]:
    length = len(states_LD)
    return {
        "llama_vec": functional.pad(states_LD, (0, 0, 0, CACHE_TOKENS - length)).half(),
        "llama_attention_mask": torch.arange(CACHE_TOKENS, device=states_LD.device) < length,
        "clip_l_pooler": pooled_D.half(),
    }


def _open(files: Files, name: str, role: str) -> WeightFile:
    flag = f"--{name}"
    file = open_weights(files[name], role=flag)
    check_role(file.shapes, wanted=role, flag=flag, source=f"{flag} {file.path.name}")
    return file
