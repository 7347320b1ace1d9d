"""What Pocket HunyuanVideo is: the sizes of its DiT and text encoders, their weights before training, and their files.

Everything is HunyuanVideo's own architecture under its own names, only narrower, so the engine loads the files like any
other. Head sizes stand in the files' metadata. LLaMA's tokenizer lies inside its file, as ComfyUI has it, CLIP's in a
folder beside, as in a diffusers folder. LLaMA has two blocks that nobody runs: HunyuanVideo takes the third state from
the end. The VAE is in pocket_hunyuan_vae.py. Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.contract.files import write_text
from engine.families.hunyuan_video import model as hunyuan_model
from engine.families.hunyuan_video.detect import HunyuanVideoConfig
from engine.families.hunyuan_video.pocket import FILES
from engine.parts import clip_text, llama_text
from engine.parts.pocket import CLIP_TOKENIZER
from engine.parts.tokenizers import CLIP, LLAMA3, from_json
from engine.parts.weights import open_weights, write_weights

from .hunyuan_words import clip_tokenizer, llama_tokenizer
from .masked_hunyuan import MaskedHunyuan
from .new_words import settled
from .pocket_hunyuan_vae import VAE_NAME
from .pocket_sizes import PocketSizes, Shapes

__all__ = [
    "CLIP_NAME", "DIT_NAME", "LLAMA_NAME", "POCKET", "SIZES", "SMALL", "VAE_NAME", "Sizes", "TextSizes",
    "clip_shapes", "llama_shapes", "new_clip", "new_dit", "new_llama", "read_clip", "read_dit", "read_llama",
    "write_clip", "write_clip_tokenizer", "write_dit", "write_llama",
]  # fmt: skip

LLAMA_NAME, CLIP_NAME, DIT_NAME = (FILES[option] for option in ("text_encoder1", "text_encoder2", "dit"))
ROWS = 384  # of both token tables
_LLAMA_TABLE, _CLIP_TABLE = "embed_tokens.weight", "embeddings.token_embedding.weight"


@dataclass(frozen=True, kw_only=True)
class TextSizes:
    """A LLaMA of `blocks` blocks that run, whose heads share one key, and a CLIP text model."""

    llama_width: int = 96
    llama_ffn: int = 256
    llama_blocks: int = 2
    llama_head: int = 32
    clip_width: int = 64
    clip_blocks: int = 1
    clip_head: int = 32


@dataclass(frozen=True, kw_only=True)
class Sizes(PocketSizes):
    """All networks."""

    text: TextSizes
    dit: HunyuanVideoConfig


def _dit(*, dim: int, ffn: int, double: int, single: int, heads: int, text: TextSizes) -> HunyuanVideoConfig:
    return HunyuanVideoConfig(
        dim=dim, ffn_dim=ffn, refiner_ffn_dim=ffn, text_dim=text.llama_width, pooled_dim=text.clip_width, in_dim=16,
        out_dim=16, num_double_blocks=double, num_single_blocks=single, num_refiner_blocks=1, num_heads=heads,
        head_dim=dim // heads, has_guidance=True,
    )  # fmt: skip


POCKET = Sizes(text=TextSizes(), dit=_dit(dim=160, ffn=384, double=2, single=6, heads=4, text=TextSizes()))
_SMALL_TEXT = TextSizes(llama_width=64, llama_ffn=96, llama_blocks=1, clip_width=32)
SMALL = Sizes(
    vae_widths=(8, 16, 16, 16),
    text=_SMALL_TEXT,
    dit=_dit(dim=64, ffn=128, double=1, single=1, heads=2, text=_SMALL_TEXT),
)
"""For trying the recipe on a CPU."""
SIZES = {"pocket": POCKET, "small": SMALL}

# --------------------------------------------------------------------------------------------------- text encoders


def llama_shapes(sizes: TextSizes) -> Shapes:
    """Names (LlamaModel's) and shapes of the language model, with the blocks that nobody runs."""
    width, keys = sizes.llama_width, sizes.llama_head
    shapes: Shapes = {"embed_tokens.weight": (ROWS, width), "norm.weight": (width,)}
    for number in range(sizes.llama_blocks + llama_text.SKIPPED_BLOCKS):
        block = f"layers.{number}"
        shapes[f"{block}.input_layernorm.weight"] = shapes[f"{block}.post_attention_layernorm.weight"] = (width,)
        for letter, rows in (("q", width), ("k", keys), ("v", keys), ("o", width)):
            shapes[f"{block}.self_attn.{letter}_proj.weight"] = (rows, width)
        for name in ("gate", "up"):
            shapes[f"{block}.mlp.{name}_proj.weight"] = (sizes.llama_ffn, width)
        shapes[f"{block}.mlp.down_proj.weight"] = (width, sizes.llama_ffn)
    return shapes


def new_llama(sizes: TextSizes) -> Any:
    """An untrained LlamaModel on the CPU, without the blocks that nobody runs and the norm behind them."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    built = llama_text.build(llama_shapes(sizes), head_dim=sizes.llama_head, blocks=sizes.llama_blocks)
    llama = built.to_empty(device="cpu").requires_grad_(True)
    llama.rotary_emb = LlamaRotaryEmbedding(llama.config)  # no weights: made with the module, so empty after `build`
    _begin(llama)
    return llama


def clip_shapes(sizes: TextSizes) -> Shapes:
    """Names (CLIPTextModel's) and shapes of the text model."""
    width = sizes.clip_width
    shapes: Shapes = {
        "embeddings.token_embedding.weight": (ROWS, width),
        "embeddings.position_embedding.weight": (clip_text.MAX_TOKENS, width),
    }

    def layer(name: str, rows: int, *columns: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (rows, *columns), (rows,)

    for number in range(sizes.clip_blocks):
        block = f"encoder.layers.{number}"
        for name in ("layer_norm1", "layer_norm2"):
            layer(f"{block}.{name}", width)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            layer(f"{block}.self_attn.{name}", width, width)
        layer(f"{block}.mlp.fc1", 2 * width, width)
        layer(f"{block}.mlp.fc2", width, 2 * width)
    layer("final_layer_norm", width)
    return shapes


def new_clip(sizes: TextSizes) -> Any:
    """An untrained CLIPTextModel on the CPU."""
    clip = clip_text.build(clip_shapes(sizes), head_dim=sizes.clip_head).to_empty(device="cpu").requires_grad_(True)
    clip.embeddings.position_ids = torch.arange(clip_text.MAX_TOKENS).unsqueeze(0)
    _begin(clip)
    return clip


def _begin(encoder: nn.Module) -> None:
    for name, weight in encoder.named_parameters():
        if weight.ndim == 1:
            (nn.init.zeros_ if name.endswith("bias") else nn.init.ones_)(weight)
        elif "embed" in name:
            nn.init.normal_(weight, std=0.1 if "position" in name else 1.0)
        else:
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)


# ------------------------------------------------------------------------------------------------------------- DiT


def new_dit(config: HunyuanVideoConfig) -> MaskedHunyuan:
    """An untrained DiT on the CPU: Xavier for matrices; modulation and last layer begin at zero (adaLN-Zero), and what
    guidance adds too."""
    dit = MaskedHunyuan(config)
    for name, weight in dit.named_parameters():
        if name.endswith("bias") or "mod" in name.lower() or name.startswith(("final_layer", "guidance_in.mlp.2")):
            nn.init.zeros_(weight)
        elif weight.ndim == 1:
            nn.init.ones_(weight)
        elif name.startswith(("time_in", "guidance_in", "vector_in", "txt_in.t_embedder", "txt_in.c_embedder")):
            nn.init.normal_(weight, std=0.02 if "mlp" in name else weight.shape[1] ** -0.5)
        else:
            nn.init.xavier_uniform_(weight.flatten(1))
    return dit


# ----------------------------------------------------------------------------------------------------------- files


def write_llama(path: Path, tensors: Mapping[str, Tensor], *, sizes: TextSizes) -> None:
    """The language model in bf16, filled up with blocks that nobody runs, with its tokenizer; new words stand beside
    their kin (new_words.py)."""
    stored = {name: torch.zeros(shape) for name, shape in llama_shapes(sizes).items()} | dict(tensors)
    words = from_json(llama_tokenizer(), source="Pocket LLaMA", kind=LLAMA3)
    stored[_LLAMA_TABLE] = settled(stored[_LLAMA_TABLE], words.split)
    tokenizer = torch.frombuffer(bytearray(llama_tokenizer().encode()), dtype=torch.uint8)
    tensors = {f"model.{name}": tensor.to(torch.bfloat16) for name, tensor in stored.items()}
    tensors[llama_text.TOKENIZER_TENSOR] = tokenizer
    write_weights(path, tensors, metadata={"format": "pt", "head_dim": str(sizes.llama_head)})


def write_clip(path: Path, tensors: Mapping[str, Tensor], *, sizes: TextSizes) -> None:
    """The text model in bf16, its tokenizer in a folder beside it; new words stand beside their kin."""
    words = from_json(clip_tokenizer(), source="Pocket CLIP", kind=CLIP)
    settled_table = settled(tensors[_CLIP_TABLE], words.split)
    stored = {f"text_model.{name}": tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    stored[f"text_model.{_CLIP_TABLE}"] = settled_table.to(torch.bfloat16)
    write_weights(path, stored, metadata={"format": "pt", "head_dim": str(sizes.clip_head)})
    write_clip_tokenizer(path.parent)


def write_clip_tokenizer(folder: Path) -> None:
    """CLIP's tokenizer, for a folder that the text model lies in."""
    place = folder / CLIP_TOKENIZER
    place.parent.mkdir(exist_ok=True)
    write_text(place, clip_tokenizer())


def write_dit(path: Path, tensors: Mapping[str, Tensor], *, head_dim: int) -> None:
    """A DiT of either family in bf16."""
    stored = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    write_weights(path, stored, metadata={"format": "pt", "head_dim": str(head_dim)})


def read_dit(path: Path) -> MaskedHunyuan:
    """A trained DiT, to train on: float32, on the CPU."""
    plain = hunyuan_model.load(path, task=None, device="cpu", dtype=torch.float32)
    dit = MaskedHunyuan(plain.config)
    dit.load_state_dict(plain.state_dict())
    return dit


def read_llama(path: Path) -> Any:
    """A trained language model, to train on: float32, on the CPU."""
    file = open_weights(path, role="--start_from")
    return llama_text.load(file, device="cpu", dtype=torch.float32).model.requires_grad_(True)


def read_clip(path: Path) -> Any:
    """A trained text model, to train on: float32, on the CPU."""
    file = open_weights(path, role="--start_from")
    return clip_text.load(file, device="cpu", dtype=torch.float32).model.requires_grad_(True)
