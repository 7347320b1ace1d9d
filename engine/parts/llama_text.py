"""Captions -> text states of LLaVA's LLaMA-3-8B (transformers' class), as HunyuanVideo and FramePack take them.

A caption is put into the chat template that Tencent published with HunyuanVideo, the model reads it, and the third
hidden state from the end is taken, without the final norm; the template's own tokens before the caption are cut off.
So the last two blocks, the norm and the head are neither loaded nor run. As the model is causal, nothing is masked:
padding behind a caption cannot change it.

Loads ComfyUI's single file (head dropped, tokenizer inside if there is one, plain or scaled fp8), LlamaModel shards,
and LLaVA's whole model (vision parts dropped). Sizes come from shapes.
Does not know cache files or DiTs. Given up: images in the prompt, and the image template.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..contract.errors import WeightsError
from .fp8_linear import store_linears_in_fp8
from .fp8_loading import load_into_fp8
from .hunyuan_options import TEXT_TOKENS
from .tokenizers import LLAMA3, HubFolder, Places, TokenCount, Tokenizer, find_tokenizer
from .weights import WeightFile, load_into, metadata_number

VIDEO_SYSTEM_PROMPT = (  # PROMPT_TEMPLATE_ENCODE_VIDEO of Tencent/HunyuanVideo; the items follow without a blank
    "Describe the video by detailing the following aspects: 1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:"
)
VIDEO_CROP_TOKENS = 95
"""Tokens before the caption with LLaMA 3's tokenizer and the prompt above, as published; `token_rows` counts them."""

SKIPPED_BLOCKS = 2
DEFAULT_HEAD_DIM = 128
ROPE_BASE = 500_000.0
NORM_EPS = 1e-5

TOKENIZER_TENSOR = "tokenizer"
TOKENIZER_PLACES = Places(
    beside=("tokenizer", "../tokenizer", "llama_tokenizer", "."),
    comfyui=("comfy/text_encoders/llama_tokenizer",),
    hub=(
        HubFolder("hunyuanvideo-community/HunyuanVideo", "tokenizer"),
        HubFolder("xtuner/llava-llama-3-8b-v1_1-transformers"),
        HubFolder("Kijai/llava-llama-3-8b-text-encoder-tokenizer"),
    ),
)

_PREFIXES = ("text_encoder.", "text_encoders.llama.transformer.", "llama.transformer.", "module.")
_MODEL_PREFIXES = ("model.language_model.", "language_model.model.", "language_model.", "model.")
_DROPPED = ("lm_head.", "vision_tower.", "multi_modal_projector.")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class LlamaText:
    """The language model up to the hidden state that is taken, with its tokenizer. `dtype`: what it computes in."""

    model: nn.Module
    tokenizer: Tokenizer
    device: torch.device
    dtype: torch.dtype


def llama_name(name: str) -> str | None:
    """LlamaModel's name for a tensor of any public layout; None for the head, vision parts and the tokenizer."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    if name == TOKENIZER_TENSOR or name.endswith("rotary_emb.inv_freq"):
        return None
    for part in _DROPPED:
        if part in name:
            return None
    return next((name[len(p) :] for p in _MODEL_PREFIXES if name.startswith(p)), name)


def llama_shapes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a text encoder file as LlamaModel has them."""
    return {ours: tuple(shape) for name, shape in shapes.items() if (ours := llama_name(name)) is not None}


def build(shapes: Shapes, *, head_dim: int = DEFAULT_HEAD_DIM, blocks: int | None = None, fp8: bool = False) -> Any:
    """A LlamaModel on the meta device, sized by shapes under its own names, with `blocks` of its blocks (None: all).

    With fewer than all there is no final norm either: it ends in a hidden state. Raises WeightsError.
    """
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaModel

    try:
        vocabulary, width = shapes["embed_tokens.weight"]
        queries, keys = (shapes[f"layers.0.self_attn.{letter}_proj.weight"][0] for letter in "qk")
        inner = shapes["layers.0.mlp.gate_proj.weight"][0]
    except KeyError as error:
        raise WeightsError(
            f"The text encoder lacks {error.args[0]}, so it is not a whole LLaMA model.",
            "Give --text_encoder1 a LLaVA-LLaMA-3-8B, e.g. llava_llama3_fp16.safetensors.",
        ) from error
    if queries % head_dim or keys % head_dim:
        raise WeightsError(
            f"The text encoder's widths {queries} and {keys} are not multiples of the head size {head_dim}.",
            "A file with another head size has to give it in the safetensors metadata key head_dim.",
        )
    stored = _block_count(shapes)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=stored if blocks is None else blocks,
        num_attention_heads=queries // head_dim,
        num_key_value_heads=keys // head_dim,
        head_dim=head_dim,
        max_position_embeddings=8192,
        rms_norm_eps=NORM_EPS,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_BASE},
        use_cache=False,
    )
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model = LlamaModel(config)
    if blocks is not None and blocks < stored:
        model.norm = nn.Identity()  # type: ignore[assignment]
    if fp8:
        store_linears_in_fp8(model)
    return model.eval().requires_grad_(False)


def _block_count(shapes: Shapes) -> int:
    return 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("layers."))


def load(
    file: WeightFile,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    fp8: bool = False,
    tokenizer: str | None = None,
    tokenizer_flag: str = "--tokenizer",
) -> LlamaText:
    """Load the text encoder of any public layout and find its tokenizer (see tokenizers.py).

    `fp8` is --fp8_llm: linear weights stay in float8 (those of a scaled fp8 file as they are), computed in `dtype`.
    `tokenizer`: a tokenizer.json or a folder with one, from `tokenizer_flag`. The head size is 128 unless the
    safetensors metadata key `head_dim` says otherwise. Raises WeightsError.
    """
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    shapes = llama_shapes(file.shapes)
    columns = metadata_number(file, "head_dim", default=DEFAULT_HEAD_DIM)
    kept = _block_count(shapes) - SKIPPED_BLOCKS if "layers.0.self_attn.q_proj.weight" in shapes else 0
    if 0 < kept:
        model = build(shapes, head_dim=columns, blocks=kept, fp8=fp8)
    else:
        build(shapes, head_dim=columns)  # names what is missing, if anything is
        raise WeightsError(f"{file.role}: {file.path.name} has {kept + SKIPPED_BLOCKS} blocks; at least 3 are needed.")
    found = find_tokenizer(
        TOKENIZER_PLACES,
        rows=shapes["embed_tokens.weight"][0],
        explicit=tokenizer,
        embedded=_embedded_tokenizer(file),
        weights=file.path,
        kind=LLAMA3,
        flag=tokenizer_flag,
    )
    unused = tuple(f"layers.{kept + number}." for number in range(SKIPPED_BLOCKS))

    def rename(name: str) -> str | None:
        ours = llama_name(name)
        return None if ours is None or ours == "norm.weight" or ours.startswith(unused) else ours

    if fp8:
        load_into_fp8(model, file, rename=rename, device=device, dtype=dtype)
    else:
        load_into(model, file, rename=rename, device=device, dtype=dtype)
    with torch.device(device):
        model.rotary_emb = LlamaRotaryEmbedding(model.config)  # not in the file: created with the module, on "meta"
    return LlamaText(model, found, torch.device(device), dtype)


def _embedded_tokenizer(file: WeightFile) -> bytes | None:
    """The tokenizer.json inside the checkpoint; None if there is none or another kind of blob: the search goes on."""
    if TOKENIZER_TENSOR not in file.shapes:
        return None
    content = file.read(TOKENIZER_TENSOR).cpu().numpy().tobytes()
    return content if content.lstrip().startswith(b"{") else None


def template(system_prompt: str | None = None) -> tuple[str, str]:
    """The text before and after a caption. None: with Tencent's video prompt."""
    system = VIDEO_SYSTEM_PROMPT if system_prompt is None else system_prompt
    before = (
        f"<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    )
    return before, "<|eot_id|>"


def token_rows(
    tokenizer: Tokenizer, captions: list[str], *, system_prompt: str | None = None
) -> tuple[list[list[int]], int]:
    """The ids of each caption in its template, and how many of them precede the caption.

    That number depends on the tokenizer and the prompt: 95 for LLaMA 3's and Tencent's.
    """
    before, after = template(system_prompt)
    crop = len(tokenizer.ids(before))
    return [tokenizer.ids(before + caption + after, limit=crop + TEXT_TOKENS) for caption in captions], crop


def token_counts(tokenizer: Tokenizer, captions: list[str], *, system_prompt: str | None = None) -> list[TokenCount]:
    """How many tokens each caption has, and how many are read. Of one that fills its 256 places, the template's closing
    token is cut off. CLIP-L's 77 are not counted: the DiT gets only its pooled vector."""
    before, after = template(system_prompt)
    around = len(tokenizer.ids(before)) + len(tokenizer.split(after))
    tokens = [len(tokenizer.ids(before + caption + after)) - around for caption in captions]
    return [TokenCount(count, read=min(count, TEXT_TOKENS)) for count in tokens]


@torch.no_grad()
def encode(encoder: LlamaText, captions: list[str], *, system_prompt: str | None = None) -> list[Tensor]:
    """Encode captions in one batch: for each a tensor [L tokens, D], 1 ≤ L ≤ 256, on the encoder's device and in its
    dtype, not padded. The closing token of the template counts, so an empty caption has L = 1.

    `system_prompt` (--custom_system_prompt) replaces Tencent's description of what to look at.
    """
    if not captions:
        return []
    rows, crop = token_rows(encoder.tokenizer, captions, system_prompt=system_prompt)
    ids_BL = torch.full((len(rows), max(map(len, rows))), encoder.tokenizer.pad_id, dtype=torch.long)
    for index, row in enumerate(rows):
        ids_BL[index, : len(row)] = torch.tensor(row)
    states_BLD = encoder.model(input_ids=ids_BL.to(encoder.device)).last_hidden_state
    return [states_LD[crop : len(row)].clone() for states_LD, row in zip(states_BLD, rows, strict=True)]
