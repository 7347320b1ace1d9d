"""One check a kind of layout file: does our full-size model, on the meta device, have its names and shapes?

A layout is `{name: shape}` of a public file. Checks go through the code that loads such a file (detection, key map,
builder), so a pass means that the strict loader would accept it. What a file is follows from its names and shapes
where it can (models), and from its own name for LoRA lists, which name the model that they belong to.
"""

from __future__ import annotations

import gzip
import importlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from engine import families
from engine.contract.errors import WeightsError
from engine.families.wan import keys
from engine.families.wan.detect import detect, role_of
from engine.lora.names import LoraTarget
from engine.lora.network import create, kohya_name, targets
from engine.parts.arrangement import arranged_shapes
from engine.tasks.lora_targets import lora_target

Shapes = dict[str, tuple[int, ...]]

HERE = Path(__file__).parent
LORA_KINDS = ("musubi", "convert_other", "diffusion_pipe", "comfy_accepts")
LORA_BASES = {  # LoRA lists that stand for several models of the same targets
    "wan21_i2v_1_3b": "wan21_fun_inp_1_3b",
    "wan21_i2v_14b": "wan21_i2v_14b_480p",
    "hunyuanvideo": "hunyuanvideo_t2v_13b",
    "framepack": "framepack_i2v_hy",
}
LORA_PREFIXES = {("hunyuan_video", "diffusion_pipe"): "transformer"}  # others: diffusion_model
EXCLUDE_NOTHING = {("hunyuan_video", "diffusion_pipe")}  # that tool adapts the modulation too
DAMAGED = {("framepack", "convert_other")}
"""Lists whose names the tool spoilt; reading has to find every module all the same."""
REFUSED = {("hunyuan_video", "comfy_accepts"): r"lora_unet_double_blocks_\d+_(img|txt)_mlp_fc[12]"}
"""LoRA module names that ComfyUI does not know although musubi-tuner writes them; checked to be still so."""


def read_layout(path: Path) -> Shapes:
    with gzip.open(path) as stream:
        return {name: tuple(shape) for name, shape in json.load(stream)["tensors"].items()}


def names_and_shapes(module: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def renamed(layout: Shapes, rename: Callable[[str], str | None]) -> Shapes:
    return {ours: shape for name, shape in layout.items() if (ours := rename(name)) is not None}


def differences(ours: Shapes, theirs: Shapes) -> list[str]:
    """Empty when equal; otherwise what a person needs to see."""
    found = [f"{name}: we lack it" for name in theirs if name not in ours]
    found += [f"{name}: only we have it" for name in ours if name not in theirs]
    both = [name for name in ours if name in theirs and ours[name] != theirs[name]]
    return found + [f"{name}: ours {list(ours[name])}, theirs {list(theirs[name])}" for name in both]


def part(family: str, file: str) -> ModuleType:
    """One file of a family, also of one that is not finished and has no options yet."""
    return importlib.import_module(f"engine.families.{family}.{file}")


def dit_family(layout: Shapes) -> str | None:
    """The family whose DiT this is."""
    known = families.names(extra=False)
    return next((family for family in known if part(family, "detect").role_of(layout) == "dit"), None)


def dit(layout: Shapes, *, family: str) -> list[str]:
    model = part(family, "model").build(part(family, "detect").detect(layout, {}).config)
    names = part(family, "keys")
    theirs = arranged_shapes(names.arrange(layout), layout)
    return differences(names_and_shapes(model), theirs)


def wan_vae(layout: Shapes) -> list[str]:
    from engine.families.wan import vae

    original = renamed(layout, keys.vae_name)
    return differences(names_and_shapes(vae.build(original)), original)


def umt5(layout: Shapes) -> list[str]:
    from engine.families.wan import text

    ours = renamed(layout, keys.text_name)
    model = names_and_shapes(text.build(ours))
    model.pop("encoder.embed_tokens.weight", None)  # the same tensor as shared.weight
    return differences(model, ours)


def clip_vision(layout: Shapes) -> list[str]:
    """transformers' class with our map, splitting Wan's fused projections."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    parts: Shapes = {}
    for name, shape in layout.items():
        split = keys.clip_parts(name, torch.empty(shape, device="meta"))
        parts.update({ours: tuple(tensor.shape) for ours, tensor in split.items()})
    width, _, patch, _ = parts["vision_model.embeddings.patch_embedding.weight"]
    grid = round((parts["vision_model.embeddings.position_embedding.weight"][0] - 1) ** 0.5)
    layers = 1 + max(int(found[1]) for name in parts if (found := re.search(r"layers\.(\d+)\.", name)))
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=parts["vision_model.encoder.layers.0.mlp.fc1.weight"][0],
        num_hidden_layers=layers,
        num_attention_heads=width // 80,
        image_size=grid * patch,
        patch_size=patch,
        projection_dim=parts["visual_projection.weight"][0],
    )
    with torch.device("meta"):
        model = CLIPVisionModelWithProjection(config)
    return differences(names_and_shapes(model), parts)


def hunyuan_vae(layout: Shapes) -> list[str]:
    from engine.parts import hunyuan_vae as vae

    original = vae.original_shapes(layout)
    return differences(names_and_shapes(vae.build(original)), original)


def llama(layout: Shapes) -> list[str]:
    """All blocks and the norm, of which loading takes what hidden state -3 needs."""
    from engine.parts import llama_text

    ours = llama_text.llama_shapes(layout)
    return differences(names_and_shapes(llama_text.build(ours)), ours)


def clip_text(layout: Shapes) -> list[str]:
    from engine.parts import clip_text as text

    ours = text.clip_shapes(layout)
    return differences(names_and_shapes(text.build(ours)), ours)


def siglip(layout: Shapes) -> list[str]:
    from engine.parts import siglip as vision

    ours = vision.siglip_shapes(layout)
    return differences(names_and_shapes(vision.build(ours)), ours)


def tiny_autoencoder(layout: Shapes) -> list[str]:
    """Encoder and decoder, though loading keeps the decoder only."""
    from engine.parts import tae

    ours = arranged_shapes(tae.arrange(layout), layout)
    return differences(names_and_shapes(tae.build(ours)), ours)


def lora(layout: Shapes, *, base: Shapes, kind: str) -> list[str]:
    """A list of LoRA tensors, or of module names that a tool accepts, against our default LoRA on the base model."""
    family = dit_family(base)
    names = part(family, "keys")
    model = part(family, "model").build(part(family, "detect").detect(base, {}).config)
    exclude = "" if (family, kind) in EXCLUDE_NOTHING else names.LORA_EXCLUDE
    paths = targets(model, block_classes=names.LORA_BLOCKS, exclude=[exclude] if exclude else [])
    modules = {path: tuple(module.weight.shape) for path, module in paths.items()}
    if kind == "comfy_accepts":
        return not_accepted(modules, layout, refused=REFUSED.get((family, kind), ""))
    rank = next(shape[0] for name, shape in layout.items() if name.endswith(("lora_down.weight", "lora_A.weight")))
    if kind == "musubi":
        network = create(model, block_classes=names.LORA_BLOCKS, exclude=exclude, dim=rank)
        return differences({name: tuple(tensor.shape) for name, tensor in network.state().items()}, layout)
    prefix = LORA_PREFIXES.get((family, kind), "diffusion_model")
    ours: Shapes = {}
    for path, (rows, columns) in modules.items():
        ours[f"{prefix}.{path}.lora_A.weight"] = (rank, columns)
        ours[f"{prefix}.{path}.lora_B.weight"] = (rows, rank)
    if (family, kind) in DAMAGED:
        layout = {repaired(name, lora_target(family, model), prefix): shape for name, shape in layout.items()}
    return differences(ours, layout)


def repaired(name: str, target: LoraTarget, prefix: str) -> str:
    """A LoRA tensor's name with the path of the module that is found for it."""
    stem, _, half = name.removesuffix(".weight").rpartition(".")
    place = target.find(stem)
    return name if place is None else f"{prefix}.{place.modules[0]}.{half}.weight"


def not_accepted(modules: Shapes, layout: Shapes, *, refused: str) -> list[str]:
    """Which of our LoRA names a tool's list lacks; names that fit `refused` must be lacking."""
    wanted = {kohya_name(path): shape for path, shape in modules.items()}
    wanted |= {f"diffusion_model.{path}": shape for path, shape in modules.items()}
    found = [f"{name}: accepted after all" for name in wanted if re.fullmatch(refused, name) and name in layout]
    kept = {name: shape for name, shape in wanted.items() if not re.fullmatch(refused, name)}
    return found + [f"{name}: not accepted with shape {list(s)}" for name, s in kept.items() if layout.get(name) != s]


def lora_base(stem: str, folders: Iterable[Path]) -> tuple[Shapes, str] | None:
    """The layout of the model that a LoRA list is for, and the list's kind; None when it is of no model here."""
    found = re.fullmatch(rf"lora_(wan.+|hunyuanvideo|framepack)_({'|'.join(LORA_KINDS)})", stem)
    if not found:
        return None
    base = LORA_BASES.get(found[1], found[1])
    for folder in folders:
        path = folder / f"{base}.json.gz"
        if path.exists():
            return read_layout(path), found[2]
    raise FileNotFoundError(f"{base}.json.gz, the model of {stem}, is in none of {', '.join(map(str, folders))}")


MODELS: Mapping[str, Callable[[Shapes], list[str]]] = {
    "vae": wan_vae,
    "text-encoder": umt5,
    "clip-vision": clip_vision,
    "hunyuan-video-vae": hunyuan_vae,
    "llama-text-encoder": llama,
    "clip-text-encoder": clip_text,
    "siglip-vision": siglip,
    "tiny-vae": tiny_autoencoder,
}


def check_file(path: Path) -> list[str] | None:
    """The differences between a layout file and our model; None when nothing here builds what it describes."""
    stem, layout = path.name.removesuffix(".json.gz"), read_layout(path)
    if stem.startswith("lora_"):
        base = lora_base(stem, [path.parent, HERE])
        return None if base is None else lora(layout, base=base[0], kind=base[1])
    family, model = dit_family(layout), MODELS.get(role_of(layout) or "")
    if family is None and model is None:
        return None
    try:
        return dit(layout, family=family) if family else model(layout)
    except WeightsError as error:
        return [f"refused: {error.message}"]


def refusal(layout: Shapes) -> str:
    """What a person is told who gives a file of this layout as --dit, where no model here is built from it."""
    try:
        detect(layout, {}, source="it")
    except WeightsError as error:
        return error.message
    return ""
