"""Recognising by its tensor names what a file is, so that a wrong one gets a clear message.

A family lists the kinds of files that a person may give (`Kind`), the most specific first; `check_role` writes the
message. Defines such lists, and the kinds of files that several families know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..contract.errors import WeightsError
from ..contract.wording import first_few

Shapes = Mapping[str, tuple[int, ...]]
Fits = Callable[[Shapes], bool]

_LORA_MARKS = (".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".hada_w1_a", ".lokr_w1")


@dataclass(frozen=True)
class Kind:
    """A kind of file: its role ("dit", "vae" …), its name with an article, advice on where to give it, and its test."""

    role: str
    words: str
    advice: str
    fits: Fits


def has(*ends: str) -> Fits:
    """A test for all of these names, alone or after a prefix that ends in a dot."""

    def fits(shapes: Shapes) -> bool:
        return all(any(name == end or name.endswith("." + end) for name in shapes) for end in ends)

    return fits


def has_any(*ends: str) -> Fits:
    """A test for any of these names."""
    return lambda shapes: any(has(end)(shapes) for end in ends)


def is_lora(shapes: Shapes) -> bool:
    """Whether these are adapters: LoRA, LoHa or LoKr, in any naming."""
    return any(mark in name for name in shapes for mark in _LORA_MARKS)


is_framepack_dit = has_any(
    "clean_x_embedder.proj.weight", "clean_x_embedder.proj_4x.weight", "image_projection.up.weight"
)
is_hunyuan_vae = has("encoder.conv_in.conv.weight")
is_llama = has("layers.0.self_attn.q_proj.weight", "layers.0.mlp.gate_proj.weight")
is_clip_text = has("text_model.embeddings.token_embedding.weight")
is_wan_vae = has_any("encoder.downsamples.0.residual.0.gamma", "encoder.down_blocks.0.norm1.gamma")
is_t5 = has_any("blocks.0.ffn.gate.0.weight", "encoder.block.0.layer.0.SelfAttention.q.weight")
is_clip_vision = has_any("visual.cls_embedding", "vision_model.embeddings.class_embedding")
is_siglip = has("vision_model.embeddings.patch_embedding.weight")  # so has CLIP's image encoder: test that first

LORA = Kind("lora", "a LoRA", "Give it as --lora_weight or --network_weights.", is_lora)
WAN_DIT = Kind(
    "wan-dit",
    "a Wan DiT",
    "Use the wan commands for it.",
    has_any("blocks.0.cross_attn.q.weight", "blocks.0.attn2.to_q.weight"),
)
TINY_VAE = Kind(
    "tiny-vae",
    "a tiny autoencoder for previews",
    "Give it as --preview_vae; it cannot replace the VAE.",
    has_any("encoder.2.conv.weight", "decoder.1.weight"),
)
HUNYUAN_FILES = (
    Kind("vae", "a HunyuanVideo VAE", "Give it as --vae.", is_hunyuan_vae),
    Kind("text-encoder", "a LLaMA text encoder", "Give it as --text_encoder1.", is_llama),
    Kind("clip-text-encoder", "a CLIP text encoder", "Give it as --text_encoder2.", is_clip_text),
    TINY_VAE,
)
"""The files besides the DiT of families that are built on HunyuanVideo."""


def kind_of(kinds: Sequence[Kind], shapes: Shapes) -> Kind | None:
    """The first kind that fits."""
    return next((kind for kind in kinds if kind.fits(shapes)), None)


def check_role(kinds: Sequence[Kind], shapes: Shapes, *, wanted: str, flag: str, source: str) -> None:
    """WeightsError unless the file has the role `wanted`; the message says what it looks like and where to give it."""
    kind = kind_of(kinds, shapes)
    if kind is not None and kind.role == wanted:
        return
    words = next(known.words for known in kinds if known.role == wanted)
    if kind is not None:
        raise WeightsError(f"{source} looks like {kind.words}, not {words}.", f"{kind.advice} {flag} takes {words}.")
    shown = first_few(shapes) or "nothing"
    raise WeightsError(f"{source} is not {words}: it holds {len(shapes)} tensors ({shown}).", f"Give another {flag}.")
