"""Weight names of FramePack: every public layout to ours, where LoRA and fp8 go, and HunyuanVideo LoRAs made to fit.

Ours are the published checkpoint's names, which are diffusers'. A map takes a parameter name or a module path and is
a pure string function; a name that it does not know comes back unchanged, and the strict loader then reports it.
`lora_pieces` tells which of ours a layer of HunyuanVideo is: it keeps query, key and value in one matrix.
Layouts: FramePack 97fe5dbe, diffusers 0.42.1, musubi-tuner 30c658c4, diffusion-pipe 8f83dbf2 (tests/layouts).
Knows nothing of files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ...parts.arrangement import Rows, renamed

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "module.", "model.")
"""What public files put before DiT names: ComfyUI's two, diffusers' pipeline part, torch wrappers."""

LORA_BLOCKS = ("HunyuanVideoTransformerBlock", "HunyuanVideoSingleTransformerBlock")
LORA_EXCLUDE = r".*(norm).*"
"""Full match on the module path, as musubi-tuner's networks.lora_framepack."""

FP8_INCLUDE = ("transformer_blocks",)  # the single blocks' name contains it too
FP8_EXCLUDE = ("norm",)
"""A layer is stored in fp8 when its name contains one of the first and none of the second (musubi-tuner's targets)."""


_IMAGE_PARTS = ("attn.to_q", "attn.to_k", "attn.to_v")
_TEXT_PARTS = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
_DOUBLE: dict[str, tuple[str, ...]] = {
    "img_mod.linear": ("norm1.linear",),
    "img_attn_qkv": _IMAGE_PARTS,
    "img_attn_proj": ("attn.to_out.0",),
    "img_mlp.fc1": ("ff.net.0.proj",),
    "img_mlp.fc2": ("ff.net.2",),
    "txt_mod.linear": ("norm1_context.linear",),
    "txt_attn_qkv": _TEXT_PARTS,
    "txt_attn_proj": ("attn.to_add_out",),
    "txt_mlp.fc1": ("ff_context.net.0.proj",),
    "txt_mlp.fc2": ("ff_context.net.2",),
    # as ComfyUI stores the same model
    "img_mod.lin": ("norm1.linear",),
    "img_attn.qkv": _IMAGE_PARTS,
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
    "txt_attn.qkv": _TEXT_PARTS,
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
_SINGLE: dict[str, tuple[str, ...]] = {
    "linear1": (*_IMAGE_PARTS, "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.linear": ("norm.linear",),
    "modulation.lin": ("norm.linear",),
}
_HUNYUAN = {
    "double": ("transformer_blocks", {path.replace(".", "_"): ours for path, ours in _DOUBLE.items()}),
    "single": ("single_transformer_blocks", {path.replace(".", "_"): ours for path, ours in _SINGLE.items()}),
}


def dit_name(name: str) -> str | None:
    """The published checkpoint's name for a DiT parameter or module path in any public layout: prefixes come off.

    None for rotary tables, which are computed here.
    """
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), ""):
        name = name[len(prefix) :]
    return None if name.startswith("rope.") else name


def arrange(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[Rows, ...]]:
    """Every tensor of a DiT file is one of ours."""
    return renamed(shapes, dit_name)


def diffusers_parts(path: str) -> tuple[str, ...]:
    """diffusers' layer for a module of ours: the same."""
    return (path,)


def is_fp8_weight(name: str) -> bool:
    """Whether this layer (module path or parameter name, ours) may be kept in fp8: the blocks' matrices."""
    return any(part in name for part in FP8_INCLUDE) and not any(part in name for part in FP8_EXCLUDE)


def keeps_fp8(path: str) -> bool:
    """Whether the weight of this linear layer may be kept in fp8."""
    return is_fp8_weight(path)


def lora_pieces(name: str) -> tuple[str, ...]:
    """The modules of ours that a HunyuanVideo layer holds, from the first row on; () for any other name.

    `name` is musubi-tuner's, diffusion-pipe's or ComfyUI's, with underscores for dots.
    """
    found = re.fullmatch(r"(double|single)_blocks_(\d+)_(.+)", name)
    if not found:
        return ()
    blocks, modules = _HUNYUAN[found[1]]
    return tuple(f"{blocks}.{found[2]}.{module}" for module in modules.get(found[3], ()))
