"""Weight names: every public layout maps onto Tencent's; which rows make up fused layers; what LoRA and fp8 go on."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.families.hunyuan_video import keys
from engine.families.hunyuan_video.detect import detect
from engine.families.hunyuan_video.model import build
from engine.lora.network import targets
from engine.parts.arrangement import Rows, arranged_shapes
from tests.layouts.checks import HERE, read_layout, renamed

ORIGINAL = "hunyuanvideo_t2v_13b"


def layout(name: str):
    return read_layout(HERE / f"{name}.json.gz")


def test_comfy_names_map_one_to_one():
    assert renamed(layout("hunyuanvideo_t2v_13b_comfy"), keys.dit_name) == layout(ORIGINAL)


@pytest.mark.parametrize(
    ("theirs", "original"),
    [("hunyuanvideo_t2v_13b_diffusers", ORIGINAL), ("skyreels_v1_i2v_diffusers", "skyreels_v1_i2v")],
)
def test_diffusers_rows_make_up_the_original(theirs, original):
    shapes = layout(theirs)
    assert arranged_shapes(keys.arrange(shapes), shapes) == layout(original)
    used = {part.name for parts in keys.arrange(shapes).values() for part in parts}
    assert used == set(shapes)


def test_original_names_stay_under_every_prefix():
    original = layout(ORIGINAL)
    for prefix in ("", *keys.PREFIXES):
        assert all(keys.dit_name(prefix + name) == name for name in original)
        assert keys.arrange({prefix + name: shape for name, shape in original.items()}) == {
            name: (Rows(prefix + name),) for name in original
        }


def test_every_weight_comes_to_its_place():
    """Shapes repeat, so equal sets of names would not notice two layers of one size that changed places."""
    pairs = {
        "double_blocks.7.txt_attn.norm.key_norm.scale": "double_blocks.7.txt_attn_k_norm.weight",
        "double_blocks.7.img_attn.norm.query_norm.weight": "double_blocks.7.img_attn_q_norm.weight",
        "double_blocks.0.img_mod.lin.bias": "double_blocks.0.img_mod.linear.bias",
        "double_blocks.3.txt_mlp.2": "double_blocks.3.txt_mlp.fc2",
        "single_blocks.12.norm.query_norm.scale": "single_blocks.12.q_norm.weight",
        "single_blocks.12.modulation.lin.weight": "single_blocks.12.modulation.linear.weight",
        "txt_in.individual_token_refiner.blocks.1.mlp.0.bias": "txt_in.individual_token_refiner.blocks.1.mlp.fc1.bias",
        "guidance_in.out_layer.weight": "guidance_in.mlp.2.weight",
        "vector_in.out_layer.weight": "vector_in.out_layer.weight",
        "txt_in.c_embedder.in_layer.weight": "txt_in.c_embedder.linear_1.weight",
        "transformer.transformer_blocks.3.attn.norm_added_q.weight": "double_blocks.3.txt_attn_q_norm.weight",
        "transformer_blocks.3.ff_context.net.0.proj": "double_blocks.3.txt_mlp.fc1",
        "transformer_blocks.3.attn.to_add_out.bias": "double_blocks.3.txt_attn_proj.bias",
        "transformer_blocks.3.norm1_context.linear.bias": "double_blocks.3.txt_mod.linear.bias",
        "single_transformer_blocks.30.proj_out.weight": "single_blocks.30.linear2.weight",
        "context_embedder.token_refiner.refiner_blocks.0.norm_out.linear.bias": (
            "txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.bias"
        ),
        "time_text_embed.text_embedder.linear_1.weight": "vector_in.in_layer.weight",
        "context_embedder.time_text_embed.text_embedder.linear_2.bias": "txt_in.c_embedder.linear_2.bias",
        "proj_out.weight": "final_layer.linear.weight",
    }
    assert {name: keys.dit_name(name) for name in pairs} == pairs
    assert keys.dit_name("rope.freqs") is None


def test_parts_of_fused_layers_have_their_order():
    assert keys.dit_part("transformer_blocks.4.attn.to_v.weight") == ("double_blocks.4.img_attn_qkv", 2, 3)
    assert keys.dit_part("transformer.transformer_blocks.4.attn.add_k_proj") == ("double_blocks.4.txt_attn_qkv", 1, 3)
    assert keys.dit_part("single_transformer_blocks.9.proj_mlp.bias") == ("single_blocks.9.linear1", 3, 4)
    assert keys.dit_part("transformer_blocks.4.attn.to_out.0.weight") is None
    shapes = {f"single_transformer_blocks.9.{part}.bias": (2,) for part in ("proj_mlp", "attn.to_v", "attn.to_q")}
    assert set(keys.arrange(shapes)) == set(shapes)  # to_k is missing: strict loading will name what is there
    shapes["single_transformer_blocks.9.attn.to_k.bias"] = (2,)
    order = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    rows = tuple(Rows(f"single_transformer_blocks.9.{part}.bias") for part in order)
    assert keys.arrange(shapes) == {"single_blocks.9.linear1.bias": rows}


def test_a_part_is_never_taken_for_the_whole():
    """Loading or matching by names alone must not put to_q where query, key and value belong."""
    for name in ("transformer_blocks.0.attn.to_q.weight", "norm_out.linear.weight"):
        assert keys.dit_name(name) == name
    assert keys.arrange({"norm_out.linear.bias": (6,)}) == {
        "final_layer.adaLN_modulation.1.bias": (Rows("norm_out.linear.bias", 3), Rows("norm_out.linear.bias", 0, 3))
    }


def test_default_lora_targets():
    """The 240 of musubi-tuner's networks.lora; tests/layouts compares every name and shape."""
    model = build(detect(layout(ORIGINAL), {}).config)
    assert len(targets(model, block_classes=keys.LORA_BLOCKS, exclude=[keys.LORA_EXCLUDE])) == 240
    assert len(targets(model, block_classes=keys.LORA_BLOCKS)) == 320
    assert not re.fullmatch(keys.LORA_EXCLUDE, "single_blocks.0.linear2")


def test_fp8_takes_the_large_matrices_of_blocks_only():
    names = layout(ORIGINAL)
    chosen = [name.removesuffix(".weight") for name in names if name.endswith(".weight") and keys.is_fp8_weight(name)]
    assert len(chosen) == 240 and all(keys.keeps_fp8(path) for path in chosen)
    assert not keys.keeps_fp8("txt_in.individual_token_refiner.blocks.0.self_attn_qkv")
    assert not keys.keeps_fp8("double_blocks.0.img_mod.linear") and not keys.keeps_fp8("final_layer.linear")


PARTS = ["double_blocks", "single_blocks", "transformer_blocks", "single_transformer_blocks", "0", "7", "x", ""]
PARTS += ["attn", "to_q", "img_attn", "norm", "query_norm", "scale", "model", "transformer", "weight", "norm_out"]
PARTS += ["context_embedder", "token_refiner", "refiner_blocks", "linear", "proj_out"]


@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=7).map(".".join))
def test_no_name_makes_a_map_fail(name):
    """A file that belongs to something else is reported by name, so every map must survive every name."""
    assert keys.dit_name(name) is None or isinstance(keys.dit_name(name), str)
    assert keys.dit_part(name) is None or len(keys.dit_part(name)) == 3
    assert isinstance(keys.arrange({name: (2, 3)}), dict) and isinstance(keys.arrange({name: ()}), dict)
