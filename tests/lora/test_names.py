"""Keys of every tool are taken apart, and every layout's modules are found in the model."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.families import part
from engine.lora.names import LoraTarget, flattened, split
from engine.tasks.lora_targets import fullest_target

LAYOUTS = Path(__file__).parents[1] / "layouts"


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("lora_unet_blocks_0_q.lora_down.weight", ("lora_unet_blocks_0_q", "lora_down.weight")),
        ("lora_unet_blocks_0_q.lora_mid.weight", ("lora_unet_blocks_0_q", "lora_mid.weight")),
        ("lora_unet_blocks_0_q.alpha", ("lora_unet_blocks_0_q", "alpha")),
        ("diffusion_model.blocks.0.q.lora_A.weight", ("diffusion_model.blocks.0.q", "lora_down.weight")),
        ("transformer.blocks.0.q.lora_B.default.weight", ("transformer.blocks.0.q", "lora_up.weight")),
        ("transformer.blocks.0.q.lora_B.my_style.weight", ("transformer.blocks.0.q", "lora_up.weight")),
        ("transformer.blocks.0.q.lora_B.bias", ("transformer.blocks.0.q", "lora_up.bias")),  # no adapter called bias
        ("base_model.model.a.q.lora_B.my_style.bias", ("base_model.model.a.q", "lora_up.bias")),
        ("base_model.model.blocks.0.q.lora_A", ("base_model.model.blocks.0.q", "lora_down.weight")),
        ("base_model.model.a.q.lora_magnitude_vector", ("base_model.model.a.q", "dora_scale")),
        ("base_model.model.a.q.lora_magnitude_vector.default.weight", ("base_model.model.a.q", "dora_scale")),
        ("unet.a.to_q_lora.down.weight", ("unet.a.to_q", "lora_down.weight")),
        ("unet.a.to_q.lora.up.weight", ("unet.a.to_q", "lora_up.weight")),
        ("a.q.lora_linear_layer.up.weight", ("a.q", "lora_up.weight")),
        ("lycoris_a_q.hada_w1_a", ("lycoris_a_q", "hada_w1_a")),
        ("lora_unet_a_q.hada_t2", ("lora_unet_a_q", "hada_t2")),
        ("lora_unet_a_q.lokr_w2", ("lora_unet_a_q", "lokr_w2")),
        ("diffusion_model.a.q.lokr_w2_b", ("diffusion_model.a.q", "lokr_w2_b")),
        ("lora_unet_a_q.dora_scale", ("lora_unet_a_q", "dora_scale")),
        ("diffusion_model.a.q.diff_b", ("diffusion_model.a.q", "diff_b")),
        ("diffusion_model.blocks.0.diff_m", ("diffusion_model.blocks.0", "diff_m")),
        ("lora_unet_a_norm.w_norm", ("lora_unet_a_norm", "diff")),
        ("a.weight", None),
        ("lora_unet_a_q.oft_blocks", None),
    ],
)
def test_a_key_is_a_module_and_a_part(key: str, found: tuple[str, str] | None) -> None:
    assert split(key) == found


@given(st.text(alphabet="ab.lora_ABdownweighthdokr_12", max_size=40))
def test_no_key_makes_it_fail(key: str) -> None:
    assert split(key) is None or len(split(key)) == 2
    assert TOY.find(key) is None or TOY.find(key).modules


TOY = LoraTarget({"blocks.0.proj_mlp": (2, 2), "blocks.0.to_out.0": (2, 2)}, bare=["blocks.0.modulation"])


@pytest.mark.parametrize(
    "stem",
    [
        "lora_unet_blocks_0_proj_mlp", "lora_unet__blocks_0_proj_mlp", "lycoris_blocks_0_proj_mlp",
        "lora_transformer_blocks_0_proj_mlp", "diffusion_model.blocks.0.proj_mlp", "transformer.blocks.0.proj_mlp",
        "base_model.model.diffusion_model.blocks.0.proj_mlp", "blocks.0.proj.mlp", "model.blocks.0.proj_mlp",
    ],
)  # fmt: skip
def test_prefixes_come_off(stem: str) -> None:
    assert TOY.find(stem).modules == ("blocks.0.proj_mlp",)


def test_what_is_not_there_is_not_found() -> None:
    assert TOY.find("lora_unet_blocks_1_proj_mlp") is None and TOY.find("lora_te_blocks_0_proj_mlp") is None
    assert TOY.find("blocks.0.modulation").modules == ("blocks.0.modulation",)


def layout(stem: str) -> dict[str, tuple[int, ...]]:
    told = json.loads(gzip.decompress((LAYOUTS / f"{stem}.json.gz").read_bytes()))["tensors"]
    return {name: tuple(shape) for name, shape in told.items()}


@pytest.mark.parametrize(
    ("family", "stem"),
    [
        ("wan", "wan21_i2v_14b_diffusers"),
        ("wan", "wan21_flf2v_14b_diffusers"),
        ("hunyuan_video", "hunyuanvideo_t2v_13b_diffusers"),
        ("hunyuan_video", "hunyuanvideo_t2v_13b_comfy"),
        ("framepack", "framepack_i2v_hy"),
    ],
)
@pytest.mark.parametrize("flat", [False, True])
def test_every_layer_of_every_layout_is_found(family: str, stem: str, flat: bool) -> None:
    """With dots as PEFT names them, and with underscores as kohya and LyCORIS do."""
    target = fullest_target(family)
    linear = [name.removesuffix(".weight") for name, shape in layout(stem).items() if len(shape) == 2]
    lost = []
    for path in (path.removeprefix("model.model.") for path in linear):
        if path == "norm_out.linear":  # diffusers has its halves the other way round, which no LoRA here follows
            continue
        found = target.find(f"lora_unet_{flattened(path)}" if flat else f"transformer.{path}")
        if found is None and path.rpartition(".")[2] not in ("modulation", "scale_shift_table", "pos_embed", "emb_pos"):
            lost.append(path)
    assert lost == []


@pytest.mark.parametrize("family", ["wan", "hunyuan_video", "framepack"])
def test_the_fullest_model_has_every_module_of_every_variant(family: str) -> None:
    detect, arrange = part(family, "detect"), part(family, "keys").arrange
    fullest = set(part(family, "model").build(detect.fullest()).state_dict())
    checked = 0
    for path in sorted(LAYOUTS.glob("*.json.gz")):
        shapes = {} if path.name.startswith("lora_") else layout(path.name.removesuffix(".json.gz"))
        if detect.role_of(shapes) == "dit" and not any(
            name.startswith(("vace_", "control_adapter")) for name in shapes
        ):
            assert not arrange(shapes).keys() - fullest, path.name
            checked += 1
    assert checked >= 2


@pytest.mark.parametrize("family", ["wan", "hunyuan_video", "framepack"])
def test_diffusers_parts_lead_back(family: str) -> None:
    target, keys = fullest_target(family), part(family, "keys")
    for path, shape in target.shapes.items():
        names = keys.diffusers_parts(path) if len(shape) == 2 else ()
        for number, name in enumerate(names):
            place = target.find(f"transformer.{name}")
            assert (place.modules, place.part, place.of) == ((path,), number, len(names)), name


def test_flat_names_are_unique() -> None:
    """Two modules whose names differ only in dots and underscores could not be told apart in kohya's files."""
    for family in ("wan", "hunyuan_video", "framepack"):
        names = [flattened(path) for path in fullest_target(family).shapes]
        assert len(names) == len(set(names))


def test_a_target_is_made_of_a_model() -> None:
    target = LoraTarget.of(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()))
    assert target.shapes == {"0": (2, 3), "1": ()} and not target.bare
