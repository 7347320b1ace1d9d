"""What programs that read LoRAs make of ours: ComfyUI by the names that it takes, diffusers by its own conversion."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.families import part
from engine.lora.formats import named
from engine.lora.names import split
from engine.lora.network import targets
from engine.lora.weights import PARTS, LohaWeights, LokrWeights, LoraWeights

LAYOUTS = Path(__file__).parents[1] / "layouts"
COMFY = [  # what its loader takes, the model that it was asked about, family
    ("hunyuanvideo", "hunyuanvideo_t2v_13b", "hunyuan_video"),
    ("hunyuanvideo", "skyreels_v1_i2v", "hunyuan_video"),
    ("wan21_t2v_1_3b", "wan21_t2v_1_3b", "wan"),
    ("wan21_t2v_14b", "wan21_t2v_14b", "wan"),
    ("wan21_t2v_14b", "wan22_i2v_a14b", "wan"),
    ("wan21_i2v_14b", "wan21_i2v_14b_480p", "wan"),
    ("wan21_i2v_14b", "wan21_fun_control_14b", "wan"),
    ("wan21_flf2v_14b", "wan21_flf2v_14b", "wan"),
    ("wan21_fun_v1_1_control_1_3b", "wan21_fun_v1_1_control_1_3b", "wan"),
]
ONE = torch.ones(1, 1)
KINDS = {
    "LoRA": LoraWeights(ONE, ONE, 1.0),
    "DoRA": LoraWeights(ONE, ONE, 1.0, dora=ONE),
    "LoHa": LohaWeights(ONE, ONE, ONE, ONE, 1.0),
    "LoKr": LokrWeights(ONE, None, 1.0, w2_a=ONE, w2_b=ONE),
}


def layout(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress((LAYOUTS / f"{name}.json.gz").read_bytes()))
    return found


def trained(family: str, model: str) -> list[str]:
    """The modules that a LoRA for this checkpoint has unless told otherwise."""
    shapes = {name: tuple(shape) for name, shape in layout(model)["tensors"].items()}
    dit = part(family, "model").build(part(family, "detect").detect(shapes, {}).config)
    keys = part(family, "keys")
    return list(targets(dit, block_classes=keys.LORA_BLOCKS, exclude=[keys.LORA_EXCLUDE]))


def suffixes(told: dict[str, Any]) -> set[str]:
    """What may follow a name; LoHa's and LoKr's, which the layouts do not list, are lycoris' own."""
    listed = {suffix.partition(" ")[0] for several in told["suffixes"].values() for suffix in several}
    return listed | {f".{name}" for name in PARTS if name.startswith(("hada", "lokr"))}


@pytest.mark.parametrize(("takes", "model", "family"), COMFY)
def test_comfyui_loads_whole_what_a_training_saves(takes: str, model: str, family: str) -> None:
    """No key is left over, and each module's keys lead to the weight that is the module's own in ComfyUI's model."""
    told, keys = layout(f"lora_{takes}_comfy_accepts"), part(family, "keys")
    known, endings = told["targets"], suffixes(told)
    wanted = part(family, "options").LORA_FORMAT
    for path in trained(family, model):
        for weights in KINDS.values():
            for key in named({path: weights}, wanted, parts_of=keys.diffusers_parts):
                stem, _ = split(key) or ("", "")
                assert key.removeprefix(stem) in endings, key
                assert keys.dit_name(known[stem]) == f"{path}.weight", key


@pytest.mark.parametrize("keep_alpha", [False, True])
def test_comfyui_loads_whole_what_is_converted_for_it(keep_alpha: bool) -> None:
    told, parts_of = layout("lora_hunyuanvideo_comfy_accepts"), part("hunyuan_video", "keys").diffusers_parts
    paths = trained("hunyuan_video", "hunyuanvideo_t2v_13b")
    for weights in KINDS.values():
        written = named(dict.fromkeys(paths, weights), "other", parts_of=parts_of, keep_alpha=keep_alpha)
        assert {(split(key) or ("",))[0] for key in written} <= told["targets"].keys()


def test_under_musubi_names_comfyui_leaves_out_a_third_of_hunyuan_video() -> None:
    """Why HunyuanVideo's LoRAs are saved under other names."""
    told, paths = layout("lora_hunyuanvideo_comfy_accepts"), trained("hunyuan_video", "hunyuanvideo_t2v_13b")
    written = named(
        dict.fromkeys(paths, KINDS["LoRA"]), "default", parts_of=part("hunyuan_video", "keys").diffusers_parts
    )
    missing = {(split(key) or ("",))[0] for key in written} - told["targets"].keys()
    assert len(missing) == 80 and all("_mlp_fc" in stem for stem in missing)


@pytest.mark.parametrize("wanted", ["default", "other"])
def test_diffusers_turns_wan_loras_into_its_own(wanted: str) -> None:
    conversion = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    convert = {
        "default": conversion._convert_musubi_wan_lora_to_diffusers,
        "other": conversion._convert_non_diffusers_wan_lora_to_diffusers,
    }[wanted]
    weights = LoraWeights(torch.randn(2, 6), torch.randn(4, 2), 0.5)
    modules = dict.fromkeys(trained("wan", "wan21_i2v_14b_480p"), weights)
    parts_of = part("wan", "keys").diffusers_parts
    theirs, ours = convert(named(modules, wanted, parts_of=parts_of)), named(modules, "diffusers", parts_of=parts_of)
    assert theirs.keys() == ours.keys() and len(ours) == 960
    for name in ours:
        if name.endswith("lora_B.weight"):
            down = name.replace("lora_B", "lora_A")
            assert torch.allclose(theirs[name] @ theirs[down], ours[name] @ ours[down], rtol=1e-5), name


def test_diffusers_turns_hunyuan_video_loras_into_its_own() -> None:
    """Full widths, which its conversion has written down; query, key and value are cut as we cut them."""
    conversion = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    sizes = {
        "double_blocks.7.img_attn_qkv": (9216, 3072),
        "double_blocks.7.txt_attn_proj": (3072, 3072),
        "double_blocks.7.txt_mlp.fc1": (12288, 3072),
        "single_blocks.30.linear1": (21504, 3072),
        "single_blocks.30.linear2": (3072, 15360),
    }
    modules = {path: LoraWeights(torch.randn(2, n), torch.randn(m, 2), 0.5) for path, (m, n) in sizes.items()}
    parts_of = part("hunyuan_video", "keys").diffusers_parts
    theirs = conversion._convert_hunyuan_video_lora_to_diffusers(named(modules, "other", parts_of=parts_of))
    ours = named(modules, "diffusers", parts_of=parts_of)
    assert theirs.keys() == ours.keys() and len(ours) == 20
    assert all(torch.allclose(theirs[name], ours[name], rtol=1e-5) for name in ours)
