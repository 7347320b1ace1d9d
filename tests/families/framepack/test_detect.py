"""What a checkpoint is, read off names and shapes; and the sentences for files that are something else."""

from __future__ import annotations

import gzip
import json

import pytest

from engine.contract.errors import WeightsError
from engine.families.framepack.detect import FramePackConfig, check_role, check_task, detect, role_of
from tests.layouts.checks import HERE, read_layout

FILES = ("framepack_i2v_hy", "framepack_f1_i2v_hy")


def layout(name: str):
    return read_layout(HERE / f"{name}.json.gz")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "transformer.", "module."])
def test_every_size_comes_from_shapes(name, prefix):
    variant = detect({prefix + key: shape for key, shape in layout(name).items()}, {})
    assert (variant.family, variant.name) == ("framepack", "i2v")
    assert variant.config == FramePackConfig(
        dim=3072, ffn_dim=12288, refiner_ffn_dim=12288, in_dim=16, out_dim=16, text_dim=4096, pooled_dim=768,
        num_layers=20, num_single_layers=40, num_refiner_layers=2, num_heads=24, head_dim=128, image_dim=1152,
        has_guidance=True, rope_axes=(16, 56, 56), patch_size=(1, 2, 2),
    )  # fmt: skip


def test_f1_cannot_be_told_apart_and_fits_both_tasks():
    one, two = (detect(layout(name), {}) for name in FILES)
    assert one == two
    check_task(one, "i2v")
    check_task(one, "f1")
    with pytest.raises(WeightsError, match="no FramePack task 't2v'") as caught:
        check_task(one, "t2v")
    assert "i2v, f1" in caught.value.hint


def test_head_size_is_metadata_or_128():
    shapes = layout(FILES[0])
    config = detect(shapes, {"head_dim": "64"}).config
    assert (config.num_heads, config.rope_axes) == (48, (8, 28, 28))
    for told in ("0", "x", "33", "500"):
        with pytest.raises(WeightsError, match="does not divide into heads"):
            detect(shapes, {"head_dim": told})


@pytest.mark.parametrize(
    "missing", ["x_embedder.proj.weight", "proj_out.weight", "transformer_blocks.", "context_embedder."]
)
def test_a_part_of_a_checkpoint_is_told_so(missing):
    part = {name: shape for name, shape in layout(FILES[0]).items() if not name.startswith(missing)}
    with pytest.raises(WeightsError, match="only part of a FramePack DiT") as caught:
        detect(part, {})
    assert "folder" in caught.value.hint


OTHERS = {
    "hunyuanvideo_t2v_13b": ("hunyuan-video-dit", "looks like a HunyuanVideo DiT", "hunyuan-video commands"),
    "hunyuanvideo_t2v_13b_comfy": ("hunyuan-video-dit", "a HunyuanVideo DiT", "hunyuan-video commands"),
    "hunyuanvideo_t2v_13b_diffusers": ("hunyuan-video-dit", "a HunyuanVideo DiT", "hunyuan-video commands"),
    "wan21_t2v_1_3b": ("wan-dit", "a Wan DiT", "wan commands"),
    "wan21_t2v_1_3b_diffusers": ("wan-dit", "a Wan DiT", "wan commands"),
    "hunyuanvideo_vae_comfy": ("vae", "a HunyuanVideo VAE", "--vae"),
    "hunyuanvideo_vae_diffusers": ("vae", "a HunyuanVideo VAE", "--vae"),
    "hunyuanvideo_vae_tencent": ("vae", "a HunyuanVideo VAE", "--vae"),
    "wan21_vae": ("wan-vae", "a Wan VAE", "wan commands"),
    "wan21_vae_diffusers": ("wan-vae", "a Wan VAE", "wan commands"),
    "llava_llama3_fp16_comfy": ("text-encoder", "a LLaMA text encoder", "--text_encoder1"),
    "llava_llama3_hunyuanvideo_community": ("text-encoder", "a LLaMA text encoder", "--text_encoder1"),
    "clip_l": ("clip-text-encoder", "a CLIP text encoder", "--text_encoder2"),
    "sigclip_vision_patch14_384": ("image-encoder", "a SigLIP image encoder", "--image_encoder"),
    "clip_vision_h": ("clip-vision", "a CLIP image encoder", "SigLIP"),
    "umt5_xxl_wan": ("t5-text-encoder", "a T5 or UMT5 text encoder", "wan commands"),
    "umt5_xxl_transformers": ("t5-text-encoder", "a T5 or UMT5 text encoder", "wan commands"),
    "taehv_hunyuanvideo": ("tiny-vae", "a tiny autoencoder", "VAE"),
    "lora_framepack_musubi": ("lora", "a LoRA", "--lora_weight"),
    "lora_framepack_convert_other": ("lora", "a LoRA", "--lora_weight"),
}
"""Layouts in tests/layouts where they are there already; the marks of the others stand in for them below."""

MARKS = {
    "llava_llama3_fp16_comfy": ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.gate_proj.weight"],
    "llava_llama3_hunyuanvideo_community": ["layers.0.self_attn.q_proj.weight", "layers.0.mlp.gate_proj.weight"],
    "clip_l": ["text_model.embeddings.token_embedding.weight"],
    "sigclip_vision_patch14_384": ["vision_model.embeddings.patch_embedding.weight", "vision_model.head.probe"],
    "taehv_hunyuanvideo": ["encoder.0.weight", "encoder.2.conv.weight", "decoder.1.weight"],
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_recognised(name):
    path = HERE / f"{name}.json.gz"
    shapes = read_layout(path) if path.exists() else {mark: (1,) for mark in MARKS[name]}
    role, message, hint = OTHERS[name]
    assert role_of(shapes) == role
    with pytest.raises(WeightsError) as caught:
        detect(shapes, {}, source="--dit x")
    assert message in caught.value.message and hint in caught.value.hint


def test_flux_is_not_called_a_hunyuan_video_dit():
    assert role_of({"double_blocks.0.img_attn.qkv.weight": (1,), "txt_in.weight": (1,)}) is None


def test_a_dit_given_as_image_encoder():
    with pytest.raises(WeightsError) as caught:
        check_role(layout(FILES[0]), wanted="image-encoder", flag="--image_encoder", source="--image_encoder z")
    assert caught.value.message == "--image_encoder z looks like a FramePack DiT, not a SigLIP image encoder."
    assert caught.value.hint == "Give it as --dit. --image_encoder takes a SigLIP image encoder."


def test_an_unknown_file_shows_what_it_holds():
    assert role_of({"a": (1,), "b": (2,)}) is None
    with pytest.raises(WeightsError, match=r"is not a FramePack DiT: it holds 2 tensors \(a, b\)"):
        detect({"a": (1,), "b": (2,)}, {})


def test_the_two_layout_files_really_are_equal():
    """If a later list told F1 apart, the variant would have to come from the file."""
    one, two = (json.loads(gzip.decompress((HERE / f"{name}.json.gz").read_bytes())) for name in FILES)
    assert one["tensors"] == two["tensors"]
