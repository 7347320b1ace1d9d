"""Weight names of the Wan family: every public layout to the names that our modules use, and where LoRA and fp8 go.

Ours are the original checkpoint's names for the DiT and the VAE, and transformers' names for the text and image
encoders (their classes are transformers'). A map takes a parameter name or a module path and is a pure string
function, so LoRA readers can use it too; a name that it does not know comes back unchanged, and the strict loader
then reports it. None means: belongs to the file format, not to the model.
Layouts: Wan2.1 9737cba9, diffusers 0.33.1 and 0.42.1, transformers 4.57, ComfyUI a125cd84 (tests/layouts).
Knows nothing of shapes; that is detect.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...parts.arrangement import Rows, renamed

if TYPE_CHECKING:
    import torch

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "module.", "model.")
"""What public files put before DiT names: ComfyUI's two, diffusers' pipeline part, torch wrappers."""

VACE_BLOCKS = "vace_blocks"
LORA_BLOCKS = ("WanAttentionBlock",)
LORA_EXCLUDE = r".*(patch_embedding|text_embedding|time_embedding|time_projection|norm|head).*"
"""Full match on the module path, as musubi-tuner's networks.lora_wan."""

FP8_INCLUDE = ("blocks",)
FP8_EXCLUDE = (
    "norm",
    "patch_embedding",
    "text_embedding",
    "time_embedding",
    "time_projection",
    "head",
    "modulation",
    "img_emb",
    "control_adapter",
)
"""A layer is stored in fp8 when its name contains one of the first and none of the second (musubi-tuner's targets)."""

_DIFFUSERS_TOP = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.image_embedder.pos_embed": "img_emb.emb_pos",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "scale_shift_table": "head.modulation",
    "proj_out": "head.head",
}
_DIFFUSERS_BLOCK = {
    "scale_shift_table": "modulation",
    "attn1.to_q": "self_attn.q",
    "attn1.to_k": "self_attn.k",
    "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o",
    "attn1.norm_q": "self_attn.norm_q",
    "attn1.norm_k": "self_attn.norm_k",
    "attn2.to_q": "cross_attn.q",
    "attn2.to_k": "cross_attn.k",
    "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o",
    "attn2.norm_q": "cross_attn.norm_q",
    "attn2.norm_k": "cross_attn.norm_k",
    "attn2.add_k_proj": "cross_attn.k_img",
    "attn2.add_v_proj": "cross_attn.v_img",
    "attn2.norm_added_k": "cross_attn.norm_k_img",
    "norm2": "norm3",  # only this one has weights, and the original calls it norm3
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
_DIFFUSERS_VACE = {**_DIFFUSERS_BLOCK, "proj_in": "before_proj", "proj_out": "after_proj"}
_VAE_RESIDUAL = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}
_VAE_ENDS = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}
_VAE_MIDDLE = {"resnets.0": "middle.0", "attentions.0": "middle.1", "resnets.1": "middle.2"}
_VAE_STAGE_LENGTH = 4  # a decoder level is three residual blocks and an upsampler, all public Wan VAEs

_T5_BLOCK = {
    "norm1": "layer.0.layer_norm",
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
_T5_TOP = {"token_embedding": "shared", "norm": "encoder.final_layer_norm"}
_T5_PREFIXES = ("text_encoder.", "text_encoders.umt5xxl.transformer.", "umt5xxl.transformer.", "module.", "model.")

_CLIP_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.to_qkv": "self_attn.qkv_proj",
    "attn.proj": "self_attn.out_proj",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
_CLIP_TOP = {
    "visual.cls_embedding": "vision_model.embeddings.class_embedding",
    "visual.pos_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.patch_embedding": "vision_model.embeddings.patch_embedding",
    "visual.pre_norm": "vision_model.pre_layrnorm",  # transformers' own spelling
    "visual.post_norm": "vision_model.post_layernorm",
    "visual.head": "visual_projection.weight",
}
_CLIP_DROPPED = ("textual.", "log_scale", "vision_model.embeddings.position_ids")


def dit_name(name: str) -> str | None:
    """The original checkpoint's name for a DiT parameter or module path in any public layout.

    Takes off the prefixes and turns diffusers' WanTransformer3DModel names into the original ones. None for rotary
    tables, which some exports store and which are computed here.
    """
    name = _without_prefix(name, PREFIXES)
    if name == "freqs" or name.startswith("rope."):
        return None
    if name.startswith(VACE_BLOCKS):
        return _translate(name, top={}, block=_DIFFUSERS_VACE, old=VACE_BLOCKS, new=VACE_BLOCKS)
    return _translate(name, top=_DIFFUSERS_TOP, block=_DIFFUSERS_BLOCK, old="blocks", new="blocks")


def dit_name_diffusers(name: str) -> str:
    """The reverse of `dit_name`: diffusers' name for one of ours (for LoRA files that diffusers reads)."""
    if name.startswith(VACE_BLOCKS):
        return _translate(name, top={}, block=_reversed(_DIFFUSERS_VACE), old=VACE_BLOCKS, new=VACE_BLOCKS)
    top, block = _reversed(_DIFFUSERS_TOP), _reversed(_DIFFUSERS_BLOCK)
    return _translate(name, top=top, block=block, old="blocks", new="blocks")


def arrange(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[Rows, ...]]:
    """Every tensor of a DiT file is one of ours."""
    return renamed(shapes, dit_name)


def diffusers_parts(path: str) -> tuple[str, ...]:
    """diffusers' layer for a module of ours: always one."""
    return (dit_name_diffusers(path),)


def lora_pieces(name: str) -> tuple[str, ...]:
    """None: no other layout joins or cuts layers of Wan."""
    return ()


def is_fp8_weight(name: str) -> bool:
    """Whether this layer (module path or parameter name, ours) may be kept in fp8: the blocks' matrices."""
    return any(part in name for part in FP8_INCLUDE) and not any(part in name for part in FP8_EXCLUDE)


def vae_name(name: str) -> str | None:
    """The original checkpoint's name for a VAE parameter, from original, `model.`-prefixed or diffusers names."""
    name = _without_prefix(name, ("first_stage_model.", "vae.", "module.", "model."))
    for theirs, ours in (("quant_conv.", "conv1."), ("post_quant_conv.", "conv2.")):
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    side, _, rest = name.partition(".")
    if side not in ("encoder", "decoder"):
        return name
    found = re.match(r"(down_blocks|mid_block|up_blocks)\.(.+)", rest)
    if not found:
        return f"{side}.{_replace_start(rest, _VAE_ENDS)}"
    place, rest = found.groups()
    if place == "mid_block":
        rest = _replace_start(rest, _VAE_MIDDLE)
    elif place == "down_blocks":
        rest = f"downsamples.{rest}"
    else:
        rest = _vae_up_block(rest)
    numbered = re.fullmatch(r"(\w+\.\d+)\.(.+)", rest)
    if not numbered:
        return name
    return f"{side}.{numbered[1]}.{_replace_start(numbered[2], _VAE_RESIDUAL)}"


def text_name(name: str) -> str | None:
    """transformers' UMT5EncoderModel name for a text encoder parameter, from Wan's, transformers' or ComfyUI's names.

    The token table is called `shared.weight`; `encoder.embed_tokens.weight`, which is the same tensor, maps to it
    too. None for ComfyUI's tokenizer blob `spiece_model`.
    """
    name = _without_prefix(name, _T5_PREFIXES)
    if name == "spiece_model":
        return None
    if name == "encoder.embed_tokens.weight":
        return "shared.weight"
    return _translate(name, top=_T5_TOP, block=_T5_BLOCK, old="blocks", new="encoder.block")


def text_name_wan(name: str) -> str:
    """The reverse of `text_name`: the name in Wan's own T5 file for one of transformers' names."""
    if name == "encoder.embed_tokens.weight":
        name = "shared.weight"
    return _translate(name, top=_reversed(_T5_TOP), block=_reversed(_T5_BLOCK), old="encoder.block", new="blocks")


def clip_name(name: str) -> str | None:
    """transformers' CLIPVisionModelWithProjection name for an image encoder parameter.

    Wan's file fuses query, key and value: its `to_qkv` becomes `self_attn.qkv_proj`, which transformers does not
    have; `clip_parts` splits it. None for the text tower, the logit scale and stored position ids.
    """
    name = _without_prefix(name, ("image_encoder.", "module.", "model."))
    if name.startswith(_CLIP_DROPPED):
        return None
    return _translate(
        name, top=_CLIP_TOP, block=_CLIP_BLOCK, old="visual.transformer", new="vision_model.encoder.layers"
    )


def clip_parts(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """One tensor of any CLIP layout as transformers' tensors, by name: renamed, reshaped, and split where fused.

    Wan keeps class and position embeddings with leading axes of 1 and the projection as [in, out]; transformers
    wants [D], [tokens, D] and [out, in].
    """
    ours = clip_name(name)
    if ours is None:
        return {}
    if ".qkv_proj." in ours:
        parts = tensor.chunk(3, dim=0)
        return {ours.replace("qkv_proj", f"{letter}_proj"): part for letter, part in zip("qkv", parts, strict=True)}
    if name.endswith("visual.head"):
        return {ours: tensor.t()}
    if name.endswith(("visual.cls_embedding", "visual.pos_embedding")):
        return {ours: tensor.squeeze(0).squeeze(0)}
    return {ours: tensor}


def _without_prefix(name: str, prefixes: tuple[str, ...]) -> str:
    for prefix in prefixes:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def _replace_start(name: str, table: dict[str, str]) -> str:
    """Replace the leading path of `name` by the table; whole path parts only."""
    for theirs, ours in table.items():
        if name == theirs or name.startswith(theirs + "."):
            return ours + name[len(theirs) :]
    return name


def _translate(name: str, *, top: dict[str, str], block: dict[str, str], old: str, new: str) -> str:
    """Translate `old.N.…` by the block table and everything else by the top table; unknown names stay as they are."""
    found = re.fullmatch(re.escape(old) + r"\.(\d+)\.(.+)", name)
    if not found:
        return _replace_start(name, top)
    number, rest = found.groups()
    translated = _replace_start(rest, block)
    return name if translated == rest else f"{new}.{number}.{translated}"


def _reversed(table: dict[str, str]) -> dict[str, str]:
    return {ours: theirs for theirs, ours in table.items()}


def _vae_up_block(rest: str) -> str:
    """diffusers groups the decoder by level; the original numbers its parts in one row."""
    found = re.match(r"(\d+)\.(resnets|upsamplers)\.(\d+)\.(.+)", rest)
    if not found:
        return f"up_blocks.{rest}"
    level, kind, index, tail = found.groups()
    offset = int(index) if kind == "resnets" else _VAE_STAGE_LENGTH - 1
    return f"upsamples.{int(level) * _VAE_STAGE_LENGTH + offset}.{tail}"
