"""Weight names of FramePack: every public layout to ours, where LoRA and fp8 go, and HunyuanVideo LoRAs made to fit.

Ours are the published checkpoint's names, which are diffusers'. A map takes a parameter name or a module path and is
a pure string function; a name that it does not know comes back unchanged, and the strict loader then reports it.
`from_hunyuan_lora` is the one function here that touches tensors: HunyuanVideo keeps query, key and value in one
matrix, so its LoRAs have to be cut.
Layouts: FramePack 97fe5dbe, diffusers 0.42.1, musubi-tuner 30c658c4, diffusion-pipe 8f83dbf2 (tests/layouts).
Knows nothing of files. Given up: LoHa and LoKr of HunyuanVideo, whose factors cannot be cut by rows in general.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "module.", "model.")
"""What public files put before DiT names: ComfyUI's two, diffusers' pipeline part, torch wrappers."""

LORA_BLOCKS = ("HunyuanVideoTransformerBlock", "HunyuanVideoSingleTransformerBlock")
LORA_EXCLUDE = r".*(norm).*"
"""Full match on the module path, as musubi-tuner's networks.lora_framepack."""

FP8_INCLUDE = ("transformer_blocks",)  # the single blocks' name contains it too
FP8_EXCLUDE = ("norm",)
"""A layer is stored in fp8 when its name contains one of the first and none of the second (musubi-tuner's targets)."""

_FEED_FORWARD = ("net.0.proj", "net.2")
_DOUBLE_MODULES = (
    *(f"attn.to_{letter}" for letter in "qkv"),
    *(f"attn.add_{letter}_proj" for letter in "qkv"),
    *("attn.to_out.0", "attn.to_add_out", "norm1.linear", "norm1_context.linear"),
    *(f"{side}.{layer}" for side in ("ff", "ff_context") for layer in _FEED_FORWARD),
)
_SINGLE_MODULES = (*(f"attn.to_{letter}" for letter in "qkv"), "proj_mlp", "proj_out", "norm.linear")
_BY_DOTS = {
    "transformer.blocks": ("transformer_blocks", {path.replace("_", "."): path for path in _DOUBLE_MODULES}),
    "single.transformer.blocks": (
        "single_transformer_blocks",
        {path.replace("_", "."): path for path in _SINGLE_MODULES},
    ),
}


def dit_name(name: str) -> str | None:
    """The published checkpoint's name for a DiT parameter or module path in any public layout.

    Takes off the prefixes, and undoes what musubi-tuner's convert_lora does to FramePack names ("proj_mlp" becomes
    "proj.mlp" there). None for rotary tables, which are computed here.
    """
    while True:
        restored = _with_underscores(name)
        if restored is not None:
            return restored
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            break
        name = name[len(prefix) :]
    return None if name.startswith("rope.") else name


def dit_name_diffusers(name: str) -> str:
    """diffusers' name for one of ours: the same."""
    return name


def is_fp8_weight(name: str) -> bool:
    """Whether this layer (module path or parameter name, ours) may be kept in fp8: the blocks' matrices."""
    return any(part in name for part in FP8_INCLUDE) and not any(part in name for part in FP8_EXCLUDE)


def keeps_fp8(path: str) -> bool:
    """Whether the weight of this linear layer may be kept in fp8."""
    return is_fp8_weight(path)


def _with_underscores(name: str) -> str | None:
    """ "single.transformer.blocks.3.proj.mlp.weight" to "single_transformer_blocks.3.proj_mlp.weight"; else None."""
    found = re.fullmatch(r"((?:single\.)?transformer\.blocks)\.(\d+)\.(.+)", name)
    if not found:
        return None
    start, number, rest = found.groups()
    blocks, modules = _BY_DOTS[start]
    for dotted, path in modules.items():
        if rest == dotted or rest.startswith(dotted + "."):
            return f"{blocks}.{number}.{path}{rest[len(dotted) :]}"
    return None


@dataclass(frozen=True)
class _Cut:
    """Modules of ours that one HunyuanVideo module holds one below the other: `parts` of the model's width each.

    `last` takes the rows that remain.
    """

    parts: tuple[str, ...]
    last: str = ""


_IMAGE_CUT = _Cut(("attn.to_q", "attn.to_k", "attn.to_v"))
_TEXT_CUT = _Cut(("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"))
_DOUBLE: dict[str, str | _Cut] = {
    "img_mod.linear": "norm1.linear",
    "img_attn_qkv": _IMAGE_CUT,
    "img_attn_proj": "attn.to_out.0",
    "img_mlp.fc1": "ff.net.0.proj",
    "img_mlp.fc2": "ff.net.2",
    "txt_mod.linear": "norm1_context.linear",
    "txt_attn_qkv": _TEXT_CUT,
    "txt_attn_proj": "attn.to_add_out",
    "txt_mlp.fc1": "ff_context.net.0.proj",
    "txt_mlp.fc2": "ff_context.net.2",
    # as ComfyUI stores the same model
    "img_mod.lin": "norm1.linear",
    "img_attn.qkv": _IMAGE_CUT,
    "img_attn.proj": "attn.to_out.0",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mod.lin": "norm1_context.linear",
    "txt_attn.qkv": _TEXT_CUT,
    "txt_attn.proj": "attn.to_add_out",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
_SINGLE: dict[str, str | _Cut] = {
    "linear1": _Cut(("attn.to_q", "attn.to_k", "attn.to_v"), last="proj_mlp"),
    "linear2": "proj_out",
    "modulation.linear": "norm.linear",
    "modulation.lin": "norm.linear",
}
_HUNYUAN = {
    "double": ("transformer_blocks", {path.replace(".", "_"): ours for path, ours in _DOUBLE.items()}),
    "single": ("single_transformer_blocks", {path.replace(".", "_"): ours for path, ours in _SINGLE.items()}),
}
_HUNYUAN_KEY = re.compile(
    r"(?:.*?[._])?(double|single)_blocks[._](\d+)[._](.+?)"
    r"\.(lora_down\.weight|lora_up\.weight|lora_A(?:\.default)?\.weight|lora_B(?:\.default)?\.weight|alpha|diff|diff_b)"
)
_COPIED = ("lora_down", "lora_A", "alpha")  # the rest has the module's output features as rows


def from_hunyuan_lora(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A LoRA with its HunyuanVideo modules turned into FramePack's, under musubi-tuner's names `lora_unet_…`.

    Takes musubi-tuner's, diffusion-pipe's and ComfyUI's names of HunyuanVideo's modules; tensors under other names
    come back as they are, so that a FramePack LoRA passes unchanged. Down halves and alphas are copied to each part
    of a module that is cut, up halves (and full differences) are cut by rows, without copying. A module that cannot
    be cut (its rows do not fit, or its down half is missing) also comes back as it is, and is reported unmatched.
    """
    widths = {
        found.group(1, 2, 3): width
        for name, tensor in tensors.items()
        if (found := _HUNYUAN_KEY.fullmatch(name)) and (width := _width(found[4], tensor))
    }
    converted: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        found = _HUNYUAN_KEY.fullmatch(name)
        parts = _parts(found, tensor, widths.get(found.group(1, 2, 3))) if found else None
        converted.update({name: tensor} if parts is None else parts)
    return converted


def _width(part: str, tensor: torch.Tensor) -> int | None:
    """The model's width, which is the number of input features of every module that is cut."""
    return tensor.shape[1] if part.startswith(("lora_down", "lora_A")) or part == "diff" else None


def _parts(found: re.Match[str], tensor: torch.Tensor, width: int | None) -> dict[str, torch.Tensor] | None:
    """The tensors that one HunyuanVideo tensor becomes; None when its module is unknown or cannot be cut."""
    kind, number, path, part = found.groups()
    blocks, modules = _HUNYUAN[kind]
    ours = modules.get(path.replace(".", "_"))
    if ours is None:
        return None
    part = part.replace("lora_A", "lora_down").replace("lora_B", "lora_up").replace(".default", "")

    def key(module: str) -> str:
        return f"lora_unet_{blocks}_{number}_{module.replace('.', '_')}.{part}"

    if isinstance(ours, str):
        return {key(ours): tensor}
    names = [*ours.parts, *([ours.last] if ours.last else [])]
    if part.startswith(_COPIED):
        return {key(module): tensor for module in names}
    rest = 0 if width is None else len(tensor) - width * len(ours.parts)
    if width is None or rest < 0 or (rest > 0) != bool(ours.last):
        return None
    sizes = [width] * len(ours.parts) + ([rest] if ours.last else [])
    return {key(module): rows for module, rows in zip(names, tensor.split(sizes), strict=True)}
