"""Captions -> text conditioning: the UMT5 encoder (transformers' class) and its tokenizer.

Loads Wan's own file (.pth), transformers' and ComfyUI's (with the tokenizer inside, plain or scaled fp8); the network's
sizes come from the shapes. A caption is cleaned as Wan's own tokenizer does (ftfy, HTML entities, white space; case
stays), cut at 512 tokens with the end token, encoded, and trimmed to its real length: nothing is padded here.

Does not know datasets, cache files or the DiT. Given up: training the text encoder. A batch is padded to its longest
caption instead of 512; masked keys have weight zero, so the numbers are the same and short captions are fast.
--fp8_t5 scales each row of a weight before it is rounded, where musubi-tuner casts without scale: closer to bf16.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...contract.errors import WeightsError
from ...parts.fp8_linear import store_linears_in_fp8
from ...parts.fp8_loading import load_into_fp8
from ...parts.tokenizers import HubFolder, Places, TokenCount, Tokenizer, find_tokenizer
from ...parts.weights import WeightFile, load_into, open_weights
from .detect import TEXT_TOKENS, check_role
from .keys import text_name

_WANTED = "Give --t5 a UMT5-XXL encoder, e.g. models_t5_umt5-xxl-enc-bf16.pth."
TOKENIZER_TENSOR = "spiece_model"
TOKENIZER_PLACES = Places(
    beside=("google/umt5-xxl", "umt5-xxl", "tokenizer", "../tokenizer", "."),
    comfyui=("comfy/text_encoders/umt5_tokenizer", "models/text_encoders/google/umt5-xxl", "models/text_encoders"),
    hub=(
        HubFolder("Wan-AI/Wan2.1-T2V-14B", "google/umt5-xxl"),
        HubFolder("Wan-AI/Wan2.1-T2V-1.3B", "google/umt5-xxl"),
        HubFolder("Wan-AI/Wan2.1-I2V-14B-480P", "google/umt5-xxl"),
        HubFolder("Wan-AI/Wan2.1-I2V-14B-720P", "google/umt5-xxl"),
        HubFolder("google/umt5-xxl"),
        HubFolder("Wan-AI/Wan2.1-T2V-14B-Diffusers", "tokenizer"),
        HubFolder("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "tokenizer"),
    ),
)


@dataclass
class TextEncoder:
    """The UMT5 encoder with its tokenizer. `dtype` is what it computes in and returns."""

    model: nn.Module
    tokenizer: Tokenizer
    device: torch.device
    dtype: torch.dtype


def clean(caption: str) -> str:
    """The caption as the tokenizer gets it: broken Unicode repaired, HTML entities resolved, white space single."""
    import ftfy

    repaired = html.unescape(html.unescape(ftfy.fix_text(caption)))
    return re.sub(r"\s+", " ", repaired).strip()


def sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """transformers' UMT5Config numbers, read off shapes under transformers' names.

    Raises WeightsError when the tensors are not a UMT5 encoder's.
    """
    first = "encoder.block.0.layer"
    position = f"{first}.0.SelfAttention.relative_attention_bias.weight"
    needed = ("shared.weight", position, f"{first}.0.SelfAttention.q.weight", f"{first}.1.DenseReluDense.wi_0.weight")
    for name in needed:
        if name not in shapes:
            raise WeightsError(f"--t5: the file lacks {name}, so it is not a whole UMT5 encoder.", _WANTED)
    layers = 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.block."))
    vocab_size, width = shapes["shared.weight"]
    buckets, heads = shapes[position]
    return {
        "vocab_size": vocab_size,
        "d_model": width,
        "d_kv": shapes[f"{first}.0.SelfAttention.q.weight"][0] // heads,
        "d_ff": shapes[f"{first}.1.DenseReluDense.wi_0.weight"][0],
        "num_layers": layers,
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
    }


def build(shapes: Mapping[str, tuple[int, ...]], *, fp8: bool = False) -> Any:
    """A UMT5EncoderModel on the meta device, sized by shapes under transformers' names."""
    from transformers.models.umt5.configuration_umt5 import UMT5Config
    from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

    config = UMT5Config(feed_forward_proj="gated-gelu", dropout_rate=0.0, use_cache=False, **sizes(shapes))
    config._attn_implementation = "eager"  # the kernel that gives the reference's numbers to the last bit
    with torch.device("meta"):
        model = UMT5EncoderModel(config)
    if fp8:
        store_linears_in_fp8(model)
    return model.eval().requires_grad_(False)


def load(
    files: Mapping[str, str],
    *,
    device: torch.device | str,
    dtype: torch.dtype = torch.bfloat16,
    fp8: bool = False,
    tokenizer: str | None = None,
) -> TextEncoder:
    """The UMT5 encoder in `files["t5"]`: see `load_umt5`."""
    return load_umt5(files["t5"], device=device, dtype=dtype, fp8=fp8, tokenizer=tokenizer)


def encode(encoder: TextEncoder, captions: list[str]) -> list[dict[str, Tensor]]:
    """What the cache keeps of each caption: "varlen_t5" [L tokens, D], unpadded."""
    return [{"varlen_t5": states_LD} for states_LD in states(encoder, captions)]


def token_counts(encoder: TextEncoder, captions: list[str]) -> list[TokenCount]:
    """How many tokens each caption has once it is cleaned, and how many are read: 511 at most, and the end token."""
    return [encoder.tokenizer.count(clean(caption), limit=TEXT_TOKENS) for caption in captions]


def load_umt5(
    path: str | Path,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    fp8: bool = False,
    tokenizer: str | None = None,
) -> TextEncoder:
    """Load a UMT5 encoder of any public layout and find its tokenizer (see parts/tokenizers.py).

    `fp8` is --fp8_t5: linear weights stay in float8 (those of a scaled fp8 file as they are), computed in `dtype`.
    `tokenizer` is --tokenizer: spiece.model, tokenizer.json or a folder with one. Raises WeightsError.
    """
    file = open_weights(path, role="--t5")
    check_role(file.shapes, wanted="text-encoder", flag="--t5", source=f"--t5 {file.path.name}")
    shapes = {ours: shape for name, shape in file.shapes.items() if (ours := text_name(name)) is not None}
    model = build(shapes, fp8=fp8)
    found = find_tokenizer(
        TOKENIZER_PLACES,
        rows=shapes["shared.weight"][0],
        explicit=tokenizer,
        embedded=_embedded_tokenizer(file),
        weights=file.path,
    )
    if fp8:
        load_into_fp8(model, file, rename=text_name, device=device, dtype=dtype)
    else:
        load_into(model, file, rename=text_name, device=device, dtype=dtype)
    return TextEncoder(model, found, torch.device(device), dtype)


def _embedded_tokenizer(file: WeightFile) -> bytes | None:
    return file.read(TOKENIZER_TENSOR).numpy().tobytes() if TOKENIZER_TENSOR in file.shapes else None


@torch.no_grad()
def states(encoder: TextEncoder, captions: list[str]) -> list[Tensor]:
    """Encode captions in one batch: for each a tensor [L tokens, D], L ≤ 512 with the end token, on the encoder's
    device and in its dtype. An empty caption has L = 1."""
    if not captions:
        return []
    rows = [encoder.tokenizer.ids(clean(caption), limit=TEXT_TOKENS) for caption in captions]
    longest = max(len(row) for row in rows)
    ids_BL = torch.full((len(rows), longest), encoder.tokenizer.pad_id, dtype=torch.long)
    mask_BL = torch.zeros_like(ids_BL)
    for index, row in enumerate(rows):
        ids_BL[index, : len(row)] = torch.tensor(row)
        mask_BL[index, : len(row)] = 1
    states_BLD = encode_ids(encoder.model, ids_BL.to(encoder.device), mask_BL.to(encoder.device))
    return [states_D[: len(row)].clone() for states_D, row in zip(states_BLD, rows, strict=True)]


def encode_ids(model: Any, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """The encoder itself: token ids and mask (1 counts, 0 is padding) to states_BLD."""
    return model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
