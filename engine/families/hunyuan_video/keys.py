"""Weight names of the HunyuanVideo family: every public layout to the names that our modules use; where LoRA goes.

Ours are Tencent's names. `dit_name` maps one name to one name (Tencent's, kijai's and musubi-tuner's files, ComfyUI's
renamed ones, and those of diffusers that hold the same tensor). diffusers keeps query, key and value apart, and the two
halves of the last modulation in the other order: `arrange` tells which rows of which tensors make up ours.
Layouts: HunyuanVideo fa14b001, ComfyUI a125cd84, diffusers 0.33.1 and 0.42.1 (tests/layouts).
Knows nothing of sizes; that is detect.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ...parts.arrangement import Rows

PREFIXES = ("model.diffusion_model.", "model.model.", "diffusion_model.", "transformer.", "module.", "model.")
"""What public files put before DiT names: ComfyUI's, diffusers' and diffusion-pipe's, torch wrappers."""

LORA_BLOCKS = ("MMDoubleStreamBlock", "MMSingleStreamBlock")
LORA_EXCLUDE = r".*(img_mod|txt_mod|modulation).*"
"""Full match on the module path, as musubi-tuner's networks.lora."""

FP8_BLOCKS = ("double_blocks.", "single_blocks.")
FP8_EXCLUDE = ("norm", "_mod.", "modulation")
"""Modulation stays as it is, 3.4 of 12.8 billion weights: its errors would hit every token in the same way."""

_FINAL_MODULATION = "final_layer.adaLN_modulation.1"
_SWAPPED = "norm_out.linear"  # diffusers' name of it: scale first, then shift

_COMFY_TOP = {
    "txt_in.t_embedder.in_layer": "txt_in.t_embedder.mlp.0",
    "txt_in.t_embedder.out_layer": "txt_in.t_embedder.mlp.2",
    "txt_in.c_embedder.in_layer": "txt_in.c_embedder.linear_1",
    "txt_in.c_embedder.out_layer": "txt_in.c_embedder.linear_2",
    "time_in.in_layer": "time_in.mlp.0",
    "time_in.out_layer": "time_in.mlp.2",
    "guidance_in.in_layer": "guidance_in.mlp.0",
    "guidance_in.out_layer": "guidance_in.mlp.2",
}
_DIFFUSERS_TOP = {
    "x_embedder.proj": "img_in.proj",
    "context_embedder.proj_in": "txt_in.input_embedder",
    "context_embedder.time_text_embed.timestep_embedder.linear_1": "txt_in.t_embedder.mlp.0",
    "context_embedder.time_text_embed.timestep_embedder.linear_2": "txt_in.t_embedder.mlp.2",
    "context_embedder.time_text_embed.text_embedder.linear_1": "txt_in.c_embedder.linear_1",
    "context_embedder.time_text_embed.text_embedder.linear_2": "txt_in.c_embedder.linear_2",
    "time_text_embed.timestep_embedder.linear_1": "time_in.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "time_in.mlp.2",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.mlp.0",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.mlp.2",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "proj_out": "final_layer.linear",
}
_TOP = {**_COMFY_TOP, **_DIFFUSERS_TOP}
_COMFY_DOUBLE = {
    f"{side}_{theirs}": f"{side}_{ours}"
    for side in ("img", "txt")
    for theirs, ours in {
        "mod.lin": "mod.linear",
        "attn.qkv": "attn_qkv",
        "attn.proj": "attn_proj",
        "attn.norm.query_norm.scale": "attn_q_norm.weight",
        "attn.norm.key_norm.scale": "attn_k_norm.weight",
        "attn.norm.query_norm": "attn_q_norm",
        "attn.norm.key_norm": "attn_k_norm",
        "mlp.0": "mlp.fc1",
        "mlp.2": "mlp.fc2",
    }.items()
}
_COMFY_SINGLE = {
    "modulation.lin": "modulation.linear",
    "norm.query_norm.scale": "q_norm.weight",
    "norm.key_norm.scale": "k_norm.weight",
    "norm.query_norm": "q_norm",
    "norm.key_norm": "k_norm",
}
_COMFY_REFINER = {
    "self_attn.qkv": "self_attn_qkv",
    "self_attn.proj": "self_attn_proj",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
_DIFFUSERS_DOUBLE = {
    "norm1.linear": "img_mod.linear",
    "norm1_context.linear": "txt_mod.linear",
    "attn.norm_q": "img_attn_q_norm",
    "attn.norm_k": "img_attn_k_norm",
    "attn.norm_added_q": "txt_attn_q_norm",
    "attn.norm_added_k": "txt_attn_k_norm",
    "attn.to_out.0": "img_attn_proj",
    "attn.to_add_out": "txt_attn_proj",
    "ff.net.0.proj": "img_mlp.fc1",
    "ff.net.2": "img_mlp.fc2",
    "ff_context.net.0.proj": "txt_mlp.fc1",
    "ff_context.net.2": "txt_mlp.fc2",
}
_DIFFUSERS_SINGLE = {
    "norm.linear": "modulation.linear",
    "attn.norm_q": "q_norm",
    "attn.norm_k": "k_norm",
    "proj_out": "linear2",
}
_DIFFUSERS_REFINER = {
    "norm1": "norm1",
    "norm2": "norm2",
    "norm_out.linear": "adaLN_modulation.1",
    "attn.to_out.0": "self_attn_proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
_REFINER = "txt_in.individual_token_refiner.blocks"
_COMFY_BLOCKS = (  # their list of blocks, ours, and the names inside
    ("double_blocks", "double_blocks", _COMFY_DOUBLE),
    ("single_blocks", "single_blocks", _COMFY_SINGLE),
    (_REFINER, _REFINER, _COMFY_REFINER),
)
_DIFFUSERS_BLOCKS = (
    ("transformer_blocks", "double_blocks", _DIFFUSERS_DOUBLE),
    ("single_transformer_blocks", "single_blocks", _DIFFUSERS_SINGLE),
    ("context_embedder.token_refiner.refiner_blocks", _REFINER, _DIFFUSERS_REFINER),
)
_BLOCKS = (*_COMFY_BLOCKS, *_DIFFUSERS_BLOCKS)
_FUSED = (  # their list of blocks, ours; our layer: the layers that it is made of, from the first row on
    (
        "transformer_blocks",
        "double_blocks",
        {
            "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
            "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        },
    ),
    (
        "single_transformer_blocks",
        "single_blocks",
        {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")},
    ),
    (
        "context_embedder.token_refiner.refiner_blocks",
        _REFINER,
        {"self_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v")},
    ),
)


def dit_name(name: str) -> str | None:
    """Tencent's name for a DiT parameter or module path in any public layout, where one tensor is one tensor.

    A part of a fused layer and diffusers' last modulation come back unchanged (see `dit_part`, `arrange`): whoever
    loads by names alone must not take them for the whole. None for rotary tables, which are computed here.
    """
    name = _without_prefix(name)
    if name.startswith("rope."):
        return None
    for theirs, ours, table in _BLOCKS:
        if found := _numbered(theirs, name):
            number, rest = found
            translated = _replace_start(rest, table)
            return name if translated is None else f"{ours}.{number}.{translated}"
    return _replace_start(name, _TOP) or name


def dit_part(name: str) -> tuple[str, int, int] | None:
    """(our module path, place, how many parts) for a diffusers layer that is a part of a fused one of ours.

    Takes a parameter name or a module path: "transformer_blocks.0.attn.to_k.weight" and the same without "weight" are
    part 1 of 3 of "double_blocks.0.img_attn_qkv". None for anything else.
    """
    name = _without_prefix(name)
    for theirs, ours, layers in _FUSED:
        if found := _numbered(theirs, name):
            number, rest = found
            for layer, parts in layers.items():
                for place, part in enumerate(parts):
                    if rest == part or rest.startswith(part + "."):
                        return f"{ours}.{number}.{layer}", place, len(parts)
    return None


def arrange(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[Rows, ...]]:
    """For a file's names: our name -> the rows that its tensor is made of.

    A name that is not known, and each part of a fused layer whose other parts are not there, stays under its own
    name, so that strict loading reports it. Of two names for one of ours the first counts.
    """
    made: dict[str, tuple[Rows, ...]] = {}
    fused: dict[str, dict[int, str]] = {}
    for name, shape in shapes.items():
        plain, part = _without_prefix(name), dit_part(name)
        if part is not None:
            ours = f"{part[0]}.{plain.rpartition('.')[2]}"
            parts = fused.setdefault(ours, {})
            parts[part[1]] = name
            if len(parts) == part[2]:
                made[ours] = tuple(Rows(parts[place]) for place in range(part[2]))
        elif plain.startswith(_SWAPPED + ".") and shape:
            half = shape[0] // 2
            made[_FINAL_MODULATION + plain[len(_SWAPPED) :]] = (Rows(name, half), Rows(name, 0, half))
        elif (translated := dit_name(name)) is not None:
            made.setdefault(translated, (Rows(name),))
    for ours, parts in fused.items():
        if ours not in made:
            made |= {name: (Rows(name),) for name in parts.values()}
    return made


def diffusers_parts(path: str) -> tuple[str, ...]:
    """diffusers' layers for a module of ours: query, key, value and what stands with them are layers of their own."""
    for theirs, ours, layers in _FUSED:
        if found := _numbered(ours, path):
            number, rest = found
            if rest in layers:
                return tuple(f"{theirs}.{number}.{part}" for part in layers[rest])
    for theirs, ours, table in _DIFFUSERS_BLOCKS:
        if found := _numbered(ours, path):
            number, rest = found
            translated = _replace_start(rest, {name: part for part, name in table.items()})
            return (path,) if translated is None else (f"{theirs}.{number}.{translated}",)
    return (next((theirs for theirs, ours in _DIFFUSERS_TOP.items() if ours == path), path),)


def lora_pieces(name: str) -> tuple[str, ...]:
    """Our module for ComfyUI's name with underscores, as LoRAs that were made for its loader have it."""
    for theirs, ours in _COMFY_TOP.items():
        if name == theirs.replace(".", "_"):
            return (ours,)
    for theirs, ours, table in _COMFY_BLOCKS:
        if found := re.fullmatch(re.escape(theirs.replace(".", "_")) + r"_(\d+)_(.+)", name):
            for part, module in table.items():
                if found[2] == part.replace(".", "_"):
                    return (f"{ours}.{found[1]}.{module}",)
    return ()


def is_fp8_weight(name: str) -> bool:
    """Whether this layer (module path or parameter name, ours) may be kept in fp8: the blocks' large matrices."""
    return name.startswith(FP8_BLOCKS) and not any(part in name for part in FP8_EXCLUDE)


def keeps_fp8(path: str) -> bool:
    """Whether the weight of this linear layer may be kept in fp8."""
    return is_fp8_weight(path)


def _without_prefix(name: str) -> str:
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def _numbered(blocks: str, name: str) -> tuple[str, str] | None:
    """(number, rest) of `blocks.N.rest`."""
    found = re.fullmatch(re.escape(blocks) + r"\.(\d+)\.(.+)", name)
    return (found[1], found[2]) if found else None


def _replace_start(name: str, table: Mapping[str, str]) -> str | None:
    """`name` with its leading path replaced by the table, whole path parts only; None when the table has none of it."""
    for theirs, ours in table.items():
        if name == theirs or name.startswith(theirs + "."):
            return ours + name[len(theirs) :]
    return None
