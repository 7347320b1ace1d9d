"""Captions -> what HunyuanVideo knows of them: states of LLaVA-LLaMA-3 for each token, and CLIP-L's pooled vector.

Both encoders read every caption in one pass, so a cache file is whole or not there. (musubi-tuner makes two passes; one
that is cut off leaves files with one half, which a later run takes for complete.) What the files hold is its format:
256 places with a mask. Does not know files' names or the DiT.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...ops.device import dtype_of
from ...parts import clip_text, llama_text
from ...parts.hunyuan_options import TEXT_TOKENS
from ...parts.tokenizers import TokenCount
from ...parts.weights import WeightFile, open_weights
from ..values import Files
from .detect import check_role


@dataclass
class TextEncoders:
    """The two models with their tokenizers."""

    llama: llama_text.LlamaText
    clip: clip_text.ClipText


def load(
    files: Files,
    *,
    device: torch.device | str,
    dtype: str | None = None,
    fp8: bool = False,
    tokenizer: tuple[str | None, str | None] = (None, None),
) -> TextEncoders:
    """LLaVA-LLaMA-3 in `files["text_encoder1"]` and CLIP-L in `files["text_encoder2"]`, each of any public layout.

    `dtype` is --text_encoder_dtype (None: float16), `fp8` is --fp8_llm, `tokenizer` --tokenizer1 and --tokenizer2.
    WeightsError for another kind of file, or when a tokenizer is found nowhere.
    """
    computed = dtype_of(dtype, torch.float16, flag="--text_encoder_dtype")
    first = _open(files["text_encoder1"], flag="--text_encoder1", wanted="text-encoder")
    second = _open(files["text_encoder2"], flag="--text_encoder2", wanted="clip-text-encoder")
    return TextEncoders(
        llama_text.load(
            first, device=device, dtype=computed, fp8=fp8, tokenizer=tokenizer[0], tokenizer_flag="--tokenizer1"
        ),
        clip_text.load(second, device=device, dtype=computed, tokenizer=tokenizer[1], tokenizer_flag="--tokenizer2"),
    )


def _open(path: str, *, flag: str, wanted: str) -> WeightFile:
    file = open_weights(path, role=flag)
    check_role(file.shapes, wanted=wanted, flag=flag, source=f"{flag} {file.path.name}")
    return file


def encode(encoder: TextEncoders, captions: list[str]) -> list[dict[str, Tensor]]:
    """For each caption "llm" [256, D] with zeros behind the text and "llm_mask" [256], "clipL" [D] with "clipL_mask"
    [77]. Masks are int64: 1 for a token, 0 for none."""
    states = llama_text.encode(encoder.llama, captions)
    pooled_BD = clip_text.encode(encoder.clip, captions)
    counts = [len(row) for row in clip_text.token_rows(encoder.clip, captions)]
    return [
        {
            "llm": torch.nn.functional.pad(states_LD, (0, 0, 0, TEXT_TOKENS - len(states_LD))),
            "llm_mask": _mask(len(states_LD), TEXT_TOKENS),
            "clipL": pooled_D,
            "clipL_mask": _mask(count, clip_text.MAX_TOKENS),
        }
        for states_LD, pooled_D, count in zip(states, pooled_BD, counts, strict=True)
    ]


def token_counts(encoder: TextEncoders, captions: list[str]) -> list[TokenCount]:
    """How many tokens each caption has for LLaVA-LLaMA-3, and how many it reads (llama_text.py)."""
    return llama_text.token_counts(encoder.llama.tokenizer, captions)


def _mask(valid: int, places: int) -> Tensor:
    mask = torch.zeros(places, dtype=torch.int64)
    mask[:valid] = 1
    return mask
