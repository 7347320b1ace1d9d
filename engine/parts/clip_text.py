"""Captions -> the pooled vector of CLIP-L's text model (transformers' class), as HunyuanVideo and FramePack take it.

Loads the text model alone (ComfyUI's clip_l, text_encoder_2 of a diffusers folder) and whole CLIP models, whose vision
part and projections are dropped: the pooled vector is the normed state of the end token, not projected. A caption is
repaired (ftfy), as by transformers' tokenizer in musubi-tuner, lower-cased by the tokenizer, and cut to 77 tokens
including start and end.

Does not know cache files or DiTs. Given up: states of single tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..contract.errors import WeightsError
from .tokenizers import CLIP, HubFolder, Places, Tokenizer, find_tokenizer
from .weights import WeightFile, load_into, metadata_number

MAX_TOKENS = 77
DEFAULT_HEAD_DIM = 64

TOKENIZER_PLACES = Places(
    beside=("tokenizer_2", "../tokenizer_2", "clip-vit-large-patch14", "../tokenizer", "."),
    comfyui=("comfy/sd1_tokenizer",),
    hub=(
        HubFolder("openai/clip-vit-large-patch14"),
        HubFolder("hunyuanvideo-community/HunyuanVideo", "tokenizer_2"),
    ),
)

_PREFIXES = ("text_encoder_2.", "text_encoders.clip_l.transformer.", "clip_l.transformer.", "module.", "text_model.")
_DROPPED = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale", "embeddings.position_ids")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class ClipText:
    """The text model with its tokenizer. `dtype`: what it computes in and returns."""

    model: Any
    tokenizer: Tokenizer
    device: torch.device
    dtype: torch.dtype


def clip_name(name: str) -> str | None:
    """CLIPTextModel's name for a tensor of any public layout; None for tensors outside of the text model."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return None if name.startswith(_DROPPED) else name


def clip_shapes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a text encoder file as CLIPTextModel has them."""
    return {ours: tuple(shape) for name, shape in shapes.items() if (ours := clip_name(name)) is not None}


def build(shapes: Shapes, *, head_dim: int = DEFAULT_HEAD_DIM) -> Any:
    """A CLIPTextModel on the meta device, sized by shapes under its own names. Raises WeightsError."""
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    try:
        vocabulary, width = shapes["embeddings.token_embedding.weight"]
        positions = shapes["embeddings.position_embedding.weight"][0]
        inner = shapes["encoder.layers.0.mlp.fc1.weight"][0]
    except KeyError as error:
        raise WeightsError(
            f"The text encoder lacks {error.args[0]}, so it is not a whole CLIP text model.",
            "Give --text_encoder2 a CLIP-L, e.g. clip_l.safetensors.",
        ) from error
    if width % head_dim:
        raise WeightsError(
            f"The text encoder's width {width} is not a multiple of the head size {head_dim}.",
            "A file with another head size has to give it in the safetensors metadata key head_dim.",
        )
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.layers.")),
        num_attention_heads=width // head_dim,
        max_position_embeddings=positions,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
    )
    with torch.device("meta"):
        return CLIPTextModel(config).eval().requires_grad_(False)


def load(
    file: WeightFile,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    tokenizer: str | None = None,
    tokenizer_flag: str = "--tokenizer",
) -> ClipText:
    """Load the text model of any public layout and find its tokenizer (see tokenizers.py).

    `tokenizer`: a tokenizer.json, a vocab.json with merges.txt, or a folder with one, from `tokenizer_flag`. The head
    size is 64 unless the safetensors metadata key `head_dim` says otherwise. Raises WeightsError.
    """
    shapes = clip_shapes(file.shapes)
    model = build(shapes, head_dim=metadata_number(file, "head_dim", default=DEFAULT_HEAD_DIM))
    found = find_tokenizer(
        TOKENIZER_PLACES,
        rows=shapes["embeddings.token_embedding.weight"][0],
        explicit=tokenizer,
        weights=file.path,
        kind=CLIP,
        flag=tokenizer_flag,
    )
    load_into(model, file, rename=clip_name, device=device, dtype=dtype)
    positions = model.config.max_position_embeddings  # not in the file: created with the module, so still on "meta"
    model.embeddings.position_ids = torch.arange(positions, device=device).unsqueeze(0)
    return ClipText(model, found, torch.device(device), dtype)


def token_rows(encoder: ClipText, captions: list[str]) -> list[list[int]]:
    """The ids of each caption with start and end, at most 77; their number is what musubi-tuner's CLIP mask counts."""
    import ftfy

    return [encoder.tokenizer.ids(ftfy.fix_text(caption), limit=MAX_TOKENS) for caption in captions]


@torch.no_grad()
def encode(encoder: ClipText, captions: list[str]) -> Tensor:
    """The pooled vectors [B, D] (768 in CLIP-L) of captions, on the encoder's device and in its dtype.

    The state of the first end token; earlier tokens cannot see later ones, so nothing is padded to 77 or masked.
    """
    if not captions:
        return encoder.model.final_layer_norm.weight.new_empty(0, len(encoder.model.final_layer_norm.weight))
    rows = token_rows(encoder, captions)
    ids_BL = torch.full((len(rows), max(map(len, rows))), encoder.tokenizer.pad_id, dtype=torch.long)
    for index, row in enumerate(rows):
        ids_BL[index, : len(row)] = torch.tensor(row)
    ends_B = torch.tensor([row.index(row[-1]) for row in rows], device=encoder.device)
    states_BLD = encoder.model(input_ids=ids_BL.to(encoder.device)).last_hidden_state
    return states_BLD[torch.arange(len(rows), device=encoder.device), ends_B]
