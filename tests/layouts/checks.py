"""One check a kind of layout file: does our full-size model, on the meta device, have its names and shapes?

A layout is `{name: shape}` of a public file. Checks go through the code that loads such a file (detection, key map,
builder), so a pass means that the strict loader would accept it. What a file is follows from its names and shapes
where it can (models), and from its own name for LoRA lists, which name the model that they belong to.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from engine.contract.errors import WeightsError
from engine.families.wan import keys
from engine.families.wan.detect import detect, role_of
from engine.families.wan.model import build
from engine.lora.network import create, kohya_name, targets

Shapes = dict[str, tuple[int, ...]]

HERE = Path(__file__).parent
NOT_BUILT = ("vace_", "control_adapter.")
LORA_KINDS = ("musubi", "convert_other", "diffusion_pipe", "comfy_accepts")
LORA_BASES = {  # LoRA lists that stand for several models of the same targets
    "wan21_i2v_1_3b": "wan21_fun_inp_1_3b",
    "wan21_i2v_14b": "wan21_i2v_14b_480p",
}


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


def wan_dit(layout: Shapes) -> list[str]:
    model = build(detect(layout, {}).config)
    return differences(names_and_shapes(model), renamed(layout, keys.dit_name))


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


def wan_lora(layout: Shapes, *, base: Shapes, kind: str) -> list[str]:
    """A list of LoRA tensors, or of module names that a tool accepts, against our default LoRA on the base model."""
    model = build(detect(base, {}).config)
    paths = targets(model, block_classes=keys.LORA_BLOCKS, exclude=[keys.LORA_EXCLUDE])
    modules = {path: tuple(module.weight.shape) for path, module in paths.items()}
    if kind == "comfy_accepts":
        wanted = {kohya_name(path): shape for path, shape in modules.items()}
        wanted |= {f"diffusion_model.{path}": shape for path, shape in modules.items()}
        return [f"{name}: not accepted with shape {list(s)}" for name, s in wanted.items() if layout.get(name) != s]
    rank = next(shape[0] for name, shape in layout.items() if name.endswith(("lora_down.weight", "lora_A.weight")))
    if kind == "musubi":
        network = create(model, block_classes=keys.LORA_BLOCKS, exclude=keys.LORA_EXCLUDE, dim=rank)
        return differences({name: tuple(tensor.shape) for name, tensor in network.state().items()}, layout)
    names: Shapes = {}
    for path, (rows, columns) in modules.items():
        names[f"diffusion_model.{path}.lora_A.weight"] = (rank, columns)
        names[f"diffusion_model.{path}.lora_B.weight"] = (rows, rank)
    return differences(names, layout)


def lora_base(stem: str, folders: Iterable[Path]) -> tuple[Shapes, str] | None:
    """The layout of the model that a LoRA list is for, and the list's kind; None when it is no Wan list."""
    found = re.fullmatch(rf"lora_(wan.+)_({'|'.join(LORA_KINDS)})", stem)
    if not found:
        return None
    base = LORA_BASES.get(found[1], found[1])
    for folder in folders:
        path = folder / f"{base}.json.gz"
        if path.exists():
            return read_layout(path), found[2]
    raise FileNotFoundError(f"{base}.json.gz, the model of {stem}, is in none of {', '.join(map(str, folders))}")


MODELS: Mapping[str, Callable[[Shapes], list[str]]] = {
    "dit": wan_dit,
    "vae": wan_vae,
    "text-encoder": umt5,
    "clip-vision": clip_vision,
}


def check_file(path: Path) -> list[str] | None:
    """The differences between a layout file and our model; None when nothing here builds what it describes."""
    stem, layout = path.name.removesuffix(".json.gz"), read_layout(path)
    if stem.startswith("lora_"):
        base = lora_base(stem, [path.parent, HERE])
        return None if base is None else wan_lora(layout, base=base[0], kind=base[1])
    if any(name.startswith(NOT_BUILT) for name in layout):
        return None
    model = MODELS.get(role_of(layout) or "")
    if model is None:
        return None
    try:
        return model(layout)
    except WeightsError as error:
        return [f"refused: {error.message}"]
