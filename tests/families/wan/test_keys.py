"""Weight names: every public layout maps onto the original's, and back; what a LoRA goes on."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from engine.families.wan import keys
from engine.families.wan.detect import detect
from engine.families.wan.model import build
from tests.layouts.checks import HERE, differences, read_layout, renamed


def layout(name: str):
    return read_layout(HERE / f"{name}.json.gz")


@pytest.mark.parametrize(
    ("theirs", "original"),
    [
        ("wan21_t2v_1_3b_diffusers", "wan21_t2v_1_3b"),
        ("wan21_t2v_14b_diffusers", "wan21_t2v_14b"),
        ("wan21_i2v_14b_diffusers", "wan21_i2v_14b_480p"),
        ("wan21_flf2v_14b_diffusers", "wan21_flf2v_14b"),
    ],
)
def test_diffusers_dit_names_map_both_ways(theirs, original):
    assert renamed(layout(theirs), keys.dit_name) == layout(original)
    assert renamed(layout(original), keys.dit_name_diffusers) == layout(theirs)


@pytest.mark.parametrize("name", ["wan21_flf2v_14b", "wan21_fun_v1_1_control_1_3b"])
def test_original_names_stay_under_every_prefix(name):
    original = layout(name)
    for prefix in ("", *keys.PREFIXES):
        assert all(keys.dit_name(prefix + key) == key for key in original)


def test_module_paths_map_as_parameters_do():
    assert keys.dit_name("transformer.blocks.3.attn2.to_out.0") == "blocks.3.cross_attn.o"
    assert keys.dit_name("diffusion_model.blocks.12.ffn.net.0.proj") == "blocks.12.ffn.0"
    assert keys.dit_name("blocks.1.attn1.to_queue.weight") == "blocks.1.attn1.to_queue.weight"
    assert keys.dit_name("rope.freqs_cos") is None and keys.dit_name("freqs") is None


@pytest.mark.parametrize("name", ["wan21_vae", "wan21_vae_model_prefix", "wan21_vae_diffusers"])
def test_vae_names(name):
    assert renamed(layout(name), keys.vae_name) == layout("wan21_vae")


def test_vae_names_keep_every_weight_in_its_place():
    """Shapes repeat inside the decoder, so equal sets would not notice two swapped blocks."""
    assert keys.vae_name("decoder.up_blocks.1.resnets.0.conv_shortcut.bias") == "decoder.upsamples.4.shortcut.bias"
    assert (
        keys.vae_name("decoder.up_blocks.2.upsamplers.0.resample.1.weight") == "decoder.upsamples.11.resample.1.weight"
    )
    assert keys.vae_name("decoder.up_blocks.3.resnets.2.norm2.gamma") == "decoder.upsamples.14.residual.3.gamma"
    assert keys.vae_name("encoder.mid_block.resnets.1.conv1.weight") == "encoder.middle.2.residual.2.weight"
    assert keys.vae_name("encoder.down_blocks.5.time_conv.bias") == "encoder.downsamples.5.time_conv.bias"
    assert keys.vae_name("quant_conv.weight") == "conv1.weight"
    assert keys.vae_name("post_quant_conv.bias") == "conv2.bias"


@pytest.mark.parametrize("name", ["umt5_xxl_wan", "umt5_xxl_transformers", "umt5_xxl_comfy"])
def test_text_names_map_both_ways(name):
    assert renamed(layout(name), keys.text_name) == layout("umt5_xxl_comfy")
    assert renamed(layout(name), lambda key: keys.text_name_wan(keys.text_name(key))) == layout("umt5_xxl_wan")
    assert keys.text_name("spiece_model") is None


@pytest.mark.parametrize("name", ["wan_clip_xlm_roberta_vit_h_14", "wan_clip_visual_only", "clip_vision_h"])
def test_clip_parts_have_transformers_names_and_shapes(name):
    found = {}
    for key, shape in layout(name).items():
        parts = keys.clip_parts(key, torch.empty(shape, device="meta"))
        found |= {ours: tuple(tensor.shape) for ours, tensor in parts.items()}
    assert not differences(found, layout("clip_vision_h"))
    assert keys.clip_name("vision_model.embeddings.position_ids") is None


def test_clip_projections_split_in_the_order_query_key_value():
    fused = torch.arange(6.0).view(6, 1)
    parts = keys.clip_parts("visual.transformer.4.attn.to_qkv.weight", fused)
    assert {name.split(".")[-2]: part.flatten().tolist() for name, part in parts.items()} == {
        "q_proj": [0.0, 1.0],
        "k_proj": [2.0, 3.0],
        "v_proj": [4.0, 5.0],
    }
    head = torch.arange(6.0).view(2, 3)
    assert torch.equal(keys.clip_parts("visual.head", head)["visual_projection.weight"], head.t())


@pytest.mark.parametrize(
    ("name", "count"), [("wan21_t2v_1_3b", 300), ("wan21_t2v_14b", 400), ("wan21_i2v_14b_480p", 480)]
)
def test_default_lora_targets(name, count):
    """The counts of musubi-tuner's networks.lora_wan; tests/layouts compares every name and shape."""
    model = build(detect(layout(name), {}).config)
    paths = [
        f"{path}.{inner}"
        for path, block in model.named_modules()
        if type(block).__name__ in keys.LORA_BLOCKS
        for inner, part in block.named_modules()
        if isinstance(part, nn.Linear)
    ]
    assert len([path for path in paths if not re.fullmatch(keys.LORA_EXCLUDE, path)]) == count


def test_fp8_patterns_take_matrices_of_blocks_only():
    names = layout("wan21_flf2v_14b")
    chosen = [name for name in names if keys.is_fp8_weight(name)]
    weights = [name for name in chosen if name.endswith(".weight")]
    assert len(weights) == 40 * 12 and all(len(names[name]) == 2 for name in weights)


PARTS = ["encoder", "decoder", "mid_block", "up_blocks", "down_blocks", "resnets", "blocks", "block", "0", "7", "x", ""]
PARTS += ["attn1", "to_q", "visual", "transformer", "model", "diffusion_model", "weight", "norm2", "layer", "head"]


@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=7).map(".".join))
def test_no_name_makes_a_map_fail(name):
    """A file that belongs to something else is reported by name, so every map must survive every name."""
    for rename in (keys.dit_name, keys.vae_name, keys.text_name, keys.clip_name):
        assert rename(name) is None or isinstance(rename(name), str)
    assert isinstance(keys.dit_name_diffusers(name), str) and isinstance(keys.text_name_wan(name), str)
