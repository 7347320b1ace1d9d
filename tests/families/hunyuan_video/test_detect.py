"""What a checkpoint is, read off names and shapes; and the sentences for files that are something else."""

from __future__ import annotations

import pytest

from engine.contract.errors import WeightsError
from engine.families.hunyuan_video.detect import HunyuanVideoConfig, check_role, check_task, detect, role_of
from tests.layouts.checks import HERE, read_layout

NAMES = {
    "hunyuanvideo_t2v_13b": ("t2v", 16),
    "hunyuanvideo_t2v_13b_comfy": ("t2v", 16),
    "hunyuanvideo_t2v_13b_diffusers": ("t2v", 16),
    "hunyuanvideo_t2v_13b_noguidance": ("t2v-no-guidance", 16),
    "hunyuanvideo_i2v_13b_concat33": ("i2v", 33),
    "hunyuanvideo_i2v_13b_tokenreplace16": ("t2v", 16),
    "skyreels_v1_t2v": ("t2v", 16),
    "skyreels_v1_i2v": ("skyreels-i2v", 32),
    "skyreels_v1_i2v_diffusers": ("skyreels-i2v", 32),
}


def layout(name: str):
    return read_layout(HERE / f"{name}.json.gz")


@pytest.mark.parametrize("name", NAMES)
def test_variants_of_public_files(name):
    variant = detect(layout(name), {})
    assert variant.family == "hunyuan_video"
    assert (variant.name, variant.config.in_dim) == NAMES[name]
    assert role_of(layout(name)) == "dit"


@pytest.mark.parametrize("name", ["hunyuanvideo_t2v_13b", "hunyuanvideo_t2v_13b_diffusers"])
@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "transformer.", "module."])
def test_a_prefix_changes_nothing(name, prefix):
    plain = layout(name)
    assert detect({prefix + name: shape for name, shape in plain.items()}, {}) == detect(plain, {})


@pytest.mark.parametrize(
    "name", ["hunyuanvideo_t2v_13b", "hunyuanvideo_t2v_13b_comfy", "hunyuanvideo_t2v_13b_diffusers"]
)
def test_every_size_comes_from_shapes(name):
    config = detect(layout(name), {}).config
    assert config == HunyuanVideoConfig(
        dim=3072, ffn_dim=12288, refiner_ffn_dim=12288, text_dim=4096, pooled_dim=768, in_dim=16, out_dim=16,
        num_double_blocks=20, num_single_blocks=40, num_refiner_blocks=2, num_heads=24, head_dim=128, has_guidance=True,
    )  # fmt: skip
    assert config.rope_axes == (16, 56, 56)


def tiny(**sizes):
    """Shapes of a small DiT by Tencent's names; keywords replace the sizes they name."""
    size = {"dim": 64, "in_dim": 16, "out": 16} | sizes
    dim = size["dim"]
    return {
        "img_in.proj.weight": (dim, size["in_dim"], 1, 2, 2),
        "txt_in.input_embedder.weight": (dim, 24),
        "txt_in.individual_token_refiner.blocks.0.norm1.weight": (dim,),
        "txt_in.individual_token_refiner.blocks.0.mlp.fc1.weight": (4 * dim, dim),
        "time_in.mlp.0.weight": (dim, 256),
        "vector_in.in_layer.weight": (dim, 12),
        "double_blocks.0.img_mlp.fc1.weight": (4 * dim, dim),
        "single_blocks.0.linear2.weight": (dim, 5 * dim),
        "final_layer.linear.weight": (4 * size["out"], dim),
    }


def test_head_size_is_metadata_or_128():
    assert detect(tiny(dim=256), {}).config.num_heads == 2
    small = detect(tiny(), {"head_dim": "16"}).config
    assert (small.num_heads, small.rope_axes) == (4, (4, 6, 6))
    for metadata in ({}, {"head_dim": "0"}, {"head_dim": "x"}, {"head_dim": "33"}, {"head_dim": "48"}):
        with pytest.raises(WeightsError, match="does not divide into heads"):
            detect(tiny(), metadata)


def test_channels_that_no_variant_has():
    with pytest.raises(WeightsError, match="takes 48 input channels for 16 latent channels"):
        detect(tiny(dim=256, in_dim=48), {})


def test_a_part_of_a_checkpoint_is_told_so():
    shapes = layout("hunyuanvideo_t2v_13b")
    for kept in ("double_blocks", "single_blocks.39", "txt_in"):
        with pytest.raises(WeightsError, match="only part of a HunyuanVideo DiT") as caught:
            detect({name: shape for name, shape in shapes.items() if name.startswith(kept)}, {})
        assert "folder" in caught.value.hint


OTHERS = {
    "lora": (["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"], "a LoRA"),
    "framepack-dit": (
        ["clean_x_embedder.proj.weight", "context_embedder.token_refiner.refiner_blocks.0.norm1.weight"],
        "a FramePack DiT",
    ),
    "hunyuan-1.5-dit": (["byt5_in.fc1.weight", "double_blocks.0.img_attn_qkv.weight"], "HunyuanVideo 1.5"),
    "flux-dit": (["double_blocks.0.img_attn.qkv.weight", "txt_in.weight"], "a Flux DiT"),
    "wan-dit": (["model.diffusion_model.blocks.0.cross_attn.q.weight"], "a Wan DiT"),
    "vae": (["encoder.conv_in.conv.weight", "decoder.conv_in.conv.weight"], "a HunyuanVideo VAE"),
    "wan-vae": (["encoder.downsamples.0.residual.0.gamma"], "a Wan VAE"),
    "text-encoder": (["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.gate_proj.weight"], "a LLaMA"),
    "clip-text-encoder": (["text_model.embeddings.token_embedding.weight"], "a CLIP text encoder"),
    "t5-text-encoder": (["blocks.0.ffn.gate.0.weight"], "a T5 text encoder"),
    "image-encoder": (["vision_model.embeddings.patch_embedding.weight"], "an image encoder"),
    "tiny-vae": (["encoder.2.conv.weight", "decoder.1.weight"], "a tiny autoencoder"),
}


@pytest.mark.parametrize("role", OTHERS)
def test_other_files_are_recognised(role):
    names, words = OTHERS[role]
    shapes = {name: (1,) for name in names}
    assert role_of(shapes) == role
    with pytest.raises(WeightsError, match="--dit x looks like") as caught:
        detect(shapes, {}, source="--dit x")
    assert words in caught.value.message and "--dit takes a HunyuanVideo DiT" in caught.value.hint


def test_an_unknown_file_shows_what_it_holds():
    assert role_of({"a": (1,), "b": (2,)}) is None
    with pytest.raises(WeightsError, match=r"--vae y is not a HunyuanVideo VAE: it holds 2 tensors \(a, b\)"):
        check_role({"a": (1,), "b": (2,)}, wanted="vae", flag="--vae", source="--vae y")


def test_diffusers_flux_is_no_part_of_this_family():
    flux = {"transformer_blocks.0.attn.norm_q.weight": (128,), "x_embedder.weight": (3072, 64)}
    assert role_of(flux) is None


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("hunyuanvideo_t2v_13b", "t2v"),
        ("hunyuanvideo_t2v_13b_noguidance", "t2v"),
        ("hunyuanvideo_i2v_13b_concat33", "i2v"),
        ("skyreels_v1_i2v", "skyreels-i2v"),
    ],
)
def test_tasks(name, task):
    variant = detect(layout(name), {})
    for other in ("t2v", "i2v", "skyreels-i2v"):
        if other == task:
            check_task(variant, other)
            continue
        with pytest.raises(WeightsError, match=f"input channels .* but the job says {other}") as caught:
            check_task(variant, other)
        assert caught.value.hint.startswith(f"It can do {task};")
    with pytest.raises(WeightsError, match="no HunyuanVideo task 'v2v'"):
        check_task(variant, "v2v")
