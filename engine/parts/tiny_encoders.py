"""Small random text and image encoders in the layouts of the public files, with tokenizers: for demos and tests.

- LLaVA-LLaMA-3 as ComfyUI's single file: `model.` names, an unused head, the tokenizer inside.
- CLIP-L's text model as clip_l.safetensors, its vocab.json and merges.txt in a folder `tokenizer_2` beside it.
- SigLIP as sigclip_vision_patch14_384.safetensors, with a pooling head.

Weights are float16 and random; outputs have about unit variance. Tokenizers are trained on the spot on a few sentences
and spell everything else in bytes. Head sizes are in the safetensors metadata. Nothing is downloaded.
Does not know the demo. Given up: any use as a real model.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from ..contract.files import write_text
from . import clip_text, llama_text
from .tiny_weights import SENTENCES
from .tokenizers import CLIP, LLAMA3
from .weights import write_weights

LLAMA_NAME, CLIP_NAME, SIGLIP_NAME = (
    "llava_llama3_tiny.safetensors",
    "clip_l_tiny.safetensors",
    "sigclip_vision_tiny.safetensors",
)
CLIP_TOKENIZER_FOLDER = "tokenizer_2"
LLAMA_WORDS, CLIP_MERGES = 768, 192  # limits for the tokenizers
LLAMA_BLOCKS, CLIP_BLOCKS, SIGLIP_BLOCKS = 4, 2, 2
LLAMA_HEAD, CLIP_HEAD, SIGLIP_HEAD = 32, 32, 24
SIGLIP_PATCH, SIGLIP_SIDE = 14, 4

_LLAMA_WORDS = (  # how LLaMA 3 cuts text before it merges bytes
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
_LLAMA_SPECIAL = (LLAMA3.start, LLAMA3.pad, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<pad>")


def llama_tokenizer() -> str:
    """A tokenizer.json with LLaMA 3's special tokens, which spells the template in few tokens."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, processors, trainers

    library = tokenizers.Tokenizer(models.BPE())
    words = pre_tokenizers.Split(tokenizers.Regex(_LLAMA_WORDS), behavior="isolated")
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=LLAMA_WORDS,
        special_tokens=list(_LLAMA_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    plain = llama_text.VIDEO_SYSTEM_PROMPT
    library.train_from_iterator([*SENTENCES, plain, plain, "system", "user", "\n\n"], trainer)
    start = LLAMA3.start or ""
    library.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, library.token_to_id(start))]
    )
    return library.to_str()


def clip_tokenizer() -> tuple[dict[str, int], list[str]]:
    """CLIP's (vocabulary, merges): bytes inside a word, bytes at a word's end, merges, start and end."""
    from tokenizers import pre_tokenizers

    words = Counter(word for text in SENTENCES for word in re.findall(r"\w+|[^\w\s]", text))
    merges = _train_merges({(*word[:-1], f"{word[-1]}</w>"): count for word, count in words.items()})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *(first + second for first, second in merges)]
    tokens += [CLIP.start or "", CLIP.end or ""]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}, [" ".join(pair) for pair in merges]


def _train_merges(words: dict[tuple[str, ...], int]) -> list[tuple[str, str]]:
    """Byte pair encoding: merge the most frequent pair repeatedly. The library's trainer breaks ties at random."""
    merges: list[tuple[str, str]] = []
    while len(merges) < CLIP_MERGES:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = {_merged(word, best): count for word, count in words.items()}
    return merges


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    found: list[str] = []
    for part in word:
        if found and (found[-1], part) == pair:
            found[-1] += part
        else:
            found.append(part)
    return tuple(found)


def llama_tensors(seed: int, *, rows: int, width: int) -> dict[str, Tensor]:
    """A LLaMA of four blocks under ComfyUI's names, with half as many key heads as query heads; float32."""
    random = _Random(seed)
    tensors = {"model.embed_tokens.weight": random(rows, width, std=0.7)}
    inner, keys = 2 * width, width // 2
    for number in range(LLAMA_BLOCKS):
        block = f"model.layers.{number}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{block}.{norm}.weight"] = torch.ones(width)
        for letter, size in (("q", width), ("k", keys), ("v", keys)):
            tensors[f"{block}.self_attn.{letter}_proj.weight"] = random(size, width, std=width**-0.5)
        tensors[f"{block}.self_attn.o_proj.weight"] = random(width, width, std=width**-0.5)
        for name in ("gate", "up"):
            tensors[f"{block}.mlp.{name}_proj.weight"] = random(inner, width, std=width**-0.5)
        tensors[f"{block}.mlp.down_proj.weight"] = random(width, inner, std=inner**-0.5)
    tensors["model.norm.weight"] = torch.ones(width)
    tensors["lm_head.weight"] = random(rows, width, std=width**-0.5)
    return tensors


def clip_tensors(seed: int, *, rows: int, width: int, tokens: int = clip_text.MAX_TOKENS) -> dict[str, Tensor]:
    """CLIP's text model under transformers' names, float32."""
    random = _Random(seed)
    tensors = {
        "text_model.embeddings.token_embedding.weight": random(rows, width, std=0.7),
        "text_model.embeddings.position_embedding.weight": random(tokens, width, std=0.2),
    }
    for number in range(CLIP_BLOCKS):
        tensors |= _tower_block(random, f"text_model.encoder.layers.{number}", width)
    return tensors | _layer_norm("text_model.final_layer_norm", width)


def siglip_tensors(seed: int, *, width: int) -> dict[str, Tensor]:
    """SigLIP's vision model with its pooling head under transformers' names, float32; 56 pixels, 16 patches."""
    random, top = _Random(seed), "vision_model"
    tensors = {
        f"{top}.embeddings.patch_embedding.weight": random(width, 3, SIGLIP_PATCH, SIGLIP_PATCH, std=0.06),
        f"{top}.embeddings.patch_embedding.bias": torch.zeros(width),
        f"{top}.embeddings.position_embedding.weight": random(SIGLIP_SIDE**2, width, std=0.3),
        f"{top}.head.probe": random(1, 1, width, std=1.0),
        f"{top}.head.attention.in_proj_weight": random(3 * width, width, std=width**-0.5),
        f"{top}.head.attention.in_proj_bias": torch.zeros(3 * width),
    }
    for number in range(SIGLIP_BLOCKS):
        tensors |= _tower_block(random, f"{top}.encoder.layers.{number}", width)
    tensors |= _layer_norm(f"{top}.post_layernorm", width) | _layer_norm(f"{top}.head.layernorm", width)
    tensors |= _linear(random, f"{top}.head.attention.out_proj", width, width)
    tensors |= _linear(random, f"{top}.head.mlp.fc1", 2 * width, width)
    return tensors | _linear(random, f"{top}.head.mlp.fc2", width, 2 * width)


class _Random:
    """Normal tensors from one seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, std: float) -> Tensor:
        return torch.randn(shape, generator=self._generator) * std


def _linear(random: _Random, name: str, rows: int, columns: int) -> dict[str, Tensor]:
    return {f"{name}.weight": random(rows, columns, std=columns**-0.5), f"{name}.bias": torch.zeros(rows)}


def _layer_norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}


def _tower_block(random: _Random, name: str, width: int) -> dict[str, Tensor]:
    """A block of CLIP or SigLIP, which have the same names."""
    tensors = _layer_norm(f"{name}.layer_norm1", width) | _layer_norm(f"{name}.layer_norm2", width)
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        tensors |= _linear(random, f"{name}.self_attn.{part}", width, width)
    tensors |= _linear(random, f"{name}.mlp.fc1", 2 * width, width)
    return tensors | _linear(random, f"{name}.mlp.fc2", width, 2 * width)


def write_llama(path: Path, *, seed: int, width: int = 64) -> None:
    """Write the language model with its tokenizer inside. `width`: of the text states, a multiple of 64."""
    tokenizer = llama_tokenizer()
    rows = len(json.loads(tokenizer)["model"]["vocab"]) + 16  # padded, as the published table is
    tensors = {name: value.half() for name, value in llama_tensors(seed, rows=rows, width=width).items()}
    tensors[llama_text.TOKENIZER_TENSOR] = torch.frombuffer(bytearray(tokenizer.encode()), dtype=torch.uint8)
    write_weights(path, tensors, metadata={"format": "pt", "head_dim": str(LLAMA_HEAD)})


def write_clip(path: Path, *, seed: int, width: int = 64) -> None:
    """Write the text model, and its tokenizer into the folder `tokenizer_2` beside it. `width`: of the pooled vector,
    a multiple of 32."""
    vocabulary, merges = clip_tokenizer()
    tensors = {name: value.half() for name, value in clip_tensors(seed, rows=len(vocabulary), width=width).items()}
    write_weights(path, tensors, metadata={"format": "pt", "head_dim": str(CLIP_HEAD)})
    folder = path.parent / CLIP_TOKENIZER_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")


def write_siglip(path: Path, *, seed: int, width: int = 48) -> None:
    """Write the image encoder. `width`: of its features [16, width], a multiple of 24."""
    tensors = {name: value.half() for name, value in siglip_tensors(seed, width=width).items()}
    write_weights(path, tensors, metadata={"format": "pt", "head_dim": str(SIGLIP_HEAD)})


def write_tiny_encoders(
    folder: str | Path, *, seed: int, text_width: int = 64, pooled_width: int = 64, image_width: int | None = 48
) -> dict[str, Path]:
    """Write the encoders into `folder` (created if missing); the same seed gives the same weights. Under 1 MB.

    Returns their paths by option name: "text_encoder1", "text_encoder2" and, unless `image_width` is None,
    "image_encoder". Each file appears whole or not at all.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {"text_encoder1": folder / LLAMA_NAME, "text_encoder2": folder / CLIP_NAME}
    write_llama(paths["text_encoder1"], seed=seed, width=text_width)
    write_clip(paths["text_encoder2"], seed=seed + 1, width=pooled_width)
    if image_width is not None:
        paths["image_encoder"] = folder / SIGLIP_NAME
        write_siglip(paths["image_encoder"], seed=seed + 2, width=image_width)
    return paths
