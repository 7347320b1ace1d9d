"""What a checkpoint is, read off names and shapes; and the sentences for files that are something else."""

from __future__ import annotations

import pytest

from engine.contract.errors import WeightsError
from engine.families.wan.detect import _TASKS, Variant, WanConfig, check_role, check_task, detect, role_of
from tests.layouts.checks import HERE, read_layout

NAMES = {
    "wan21_t2v_1_3b": "t2v-1.3B",
    "wan21_t2v_1_3b_diffusers": "t2v-1.3B",
    "wan21_t2v_14b": "t2v-14B",
    "wan21_i2v_14b_480p": "i2v-14B",
    "wan21_i2v_14b_diffusers": "i2v-14B",
    "wan21_flf2v_14b": "flf2v-14B",
    "wan21_flf2v_14b_diffusers": "flf2v-14B",
    "wan21_fun_inp_1_3b": "i2v-1.3B",
    "wan21_fun_inp_14b": "i2v-14B",
    "wan21_fun_control_1_3b": "t2v-1.3B-FC",
    "wan21_fun_control_14b": "t2v-14B-FC",
    "wan21_fun_v1_1_control_14b": "t2v-14B-FC",
    "wan21_vace_1_3b": "vace-1.3B",
    "wan21_vace_14b": "vace-14B",
    "wan21_fun_v1_1_control_camera_1_3b": "camera-1.3B",
    "wan21_fun_v1_1_control_camera_14b": "camera-14B",
    "wan22_i2v_a14b": "i2v-A14B",
}


def layout(name: str):
    return read_layout(HERE / f"{name}.json.gz")


@pytest.mark.parametrize("name", NAMES)
def test_variants_of_public_files(name):
    variant = detect(layout(name), {})
    assert (variant.family, variant.name) == ("wan", NAMES[name])


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "transformer.", "module."])
def test_a_prefix_changes_nothing(prefix):
    plain = layout("wan21_flf2v_14b")
    assert detect({prefix + name: shape for name, shape in plain.items()}, {}) == detect(plain, {})


def test_every_size_comes_from_shapes():
    config = detect(layout("wan21_flf2v_14b"), {}).config
    assert config == WanConfig(
        dim=5120, ffn_dim=13824, freq_dim=256, text_dim=4096, in_dim=36, out_dim=16, num_layers=40, num_heads=40,
        head_dim=128, image_dim=1280, image_tokens=514,
    )  # fmt: skip
    reference = detect(layout("wan21_fun_v1_1_control_1_3b"), {}).config
    assert reference.has_ref_conv and reference.reference_dim == 16 and reference.image_tokens == 257


def tiny(**shapes):
    """Shapes of a small DiT by our names; keywords replace the sizes they name."""
    size = {"dim": 64, "ffn": 96, "freq": 32, "text": 24, "in_dim": 16, "out": 16} | shapes
    return {
        "patch_embedding.weight": (size["dim"], size["in_dim"], 1, 2, 2),
        "text_embedding.0.weight": (size["dim"], size["text"]),
        "time_embedding.0.weight": (size["dim"], size["freq"]),
        "blocks.0.self_attn.q.weight": (size["dim"], size["dim"]),
        "blocks.0.cross_attn.q.weight": (size["dim"], size["dim"]),
        "blocks.0.ffn.0.weight": (size["ffn"], size["dim"]),
        "head.head.weight": (4 * size["out"], size["dim"]),
        "head.modulation": (1, 2, size["dim"]),
    }


def test_head_size_is_metadata_or_128():
    assert detect(tiny(dim=256), {}).config.num_heads == 2
    assert detect(tiny(), {"head_dim": "32"}).config.num_heads == 2
    for metadata in ({}, {"head_dim": "0"}, {"head_dim": "x"}, {"head_dim": "33"}, {"head_dim": "48"}):
        with pytest.raises(WeightsError, match="does not divide into heads"):
            detect(tiny(), metadata)


def test_a_part_of_a_checkpoint_is_told_so():
    shapes = tiny()
    del shapes["text_embedding.0.weight"]
    with pytest.raises(WeightsError, match="only part of a Wan DiT") as caught:
        detect(shapes, {"head_dim": "32"})
    assert "folder" in caught.value.hint


def test_a_vace_checkpoint_tells_where_its_hints_go():
    found = detect(layout("wan21_vace_14b"), {}).config
    assert list(found.vace_places) == [0, 5, 10, 15, 20, 25, 30, 35]
    assert list(detect(layout("wan21_vace_1_3b"), {}).config.vace_places) == list(range(0, 30, 2))
    order = [(run.prefix, run.first, run.count) for run in found.runs]
    assert order[:4] == [("vace_blocks", 0, 1), ("blocks", 0, 5), ("vace_blocks", 1, 1), ("blocks", 5, 5)]


def test_half_a_vace_checkpoint_is_told_so():
    whole = layout("wan21_vace_1_3b")
    few = {name: shape for name, shape in whole.items() if not name.startswith(("blocks.1", "blocks.2"))}
    with pytest.raises(WeightsError, match="only part of a Wan DiT.*15 VACE blocks for 10"):
        detect(few, {})


def test_a_vace_checkpoint_is_no_t2v():
    with pytest.raises(WeightsError, match="16 input channels .VACE.* but the job says t2v-14B") as caught:
        check_task(detect(layout("wan21_vace_14b"), {}), "t2v-14B")
    assert "--task vace-14B" in caught.value.hint


OTHERS = {
    "wan21_vae": ("vae", "--dit x looks like a Wan VAE, not a Wan DiT.", "Give it as --vae."),
    "wan21_vae_diffusers": ("vae", "a Wan VAE", "--vae"),
    "wan21_vae_model_prefix": ("vae", "a Wan VAE", "--vae"),
    "umt5_xxl_wan": ("text-encoder", "looks like a UMT5 text encoder", "Give it as --t5."),
    "umt5_xxl_comfy": ("text-encoder", "a UMT5 text encoder", "--t5"),
    "umt5_xxl_transformers": ("text-encoder", "a UMT5 text encoder", "--t5"),
    "clip_vision_h": ("clip-vision", "a CLIP image encoder", "--clip"),
    "wan_clip_xlm_roberta_vit_h_14": ("clip-vision", "a CLIP image encoder", "--clip"),
    "wan_clip_visual_only": ("clip-vision", "a CLIP image encoder", "--clip"),
    "lora_wan21_t2v_1_3b_musubi": ("lora", "a LoRA", "--lora_weight"),
    "lora_wan21_t2v_1_3b_diffusion_pipe": ("lora", "a LoRA", "--lora_weight"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_recognised(name):
    role, message, hint = OTHERS[name]
    shapes = layout(name)
    assert role_of(shapes) == role
    with pytest.raises(WeightsError) as caught:
        detect(shapes, {}, source="--dit x")
    assert message in caught.value.message and hint in caught.value.hint


OTHER_FAMILIES = {
    "hunyuan-video-dit": ["img_in.proj.weight", "double_blocks.0.img_attn_qkv.weight"],
    "hunyuan-video-dit ": ["model.model.double_blocks.0.img_attn_qkv.weight"],
    "hunyuan-video-dit  ": ["x_embedder.proj.weight", "transformer_blocks.0.attn.add_q_proj.weight"],
    "framepack-dit": [
        "clean_x_embedder.proj.weight",
        "transformer_blocks.0.attn.to_q.weight",
        "transformer_blocks.0.attn.add_q_proj.weight",
    ],
    "hunyuan-video-vae": ["encoder.conv_in.conv.weight", "decoder.conv_in.conv.weight"],
    "llama-text-encoder": ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.gate_proj.weight"],
    "clip-text-encoder": ["text_model.embeddings.token_embedding.weight"],
    "siglip-vision": ["vision_model.embeddings.patch_embedding.weight", "vision_model.head.probe"],
    "tiny-vae": ["encoder.2.conv.weight", "decoder.1.weight"],
    "t5-text-encoder": [
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "encoder.block.1.layer.0.SelfAttention.q.weight",
    ],
}


@pytest.mark.parametrize("role", OTHER_FAMILIES)
def test_files_of_other_families_are_recognised(role):
    shapes = {name: (1,) for name in OTHER_FAMILIES[role]}
    assert role_of(shapes) == role.strip()
    with pytest.raises(WeightsError, match="looks like"):
        detect(shapes, {})


def test_an_unknown_file_shows_what_it_holds():
    assert role_of({"a": (1,), "b": (2,)}) is None
    with pytest.raises(WeightsError, match=r"--vae y is not a Wan VAE: it holds 2 tensors \(a, b\)"):
        check_role({"a": (1,), "b": (2,)}, wanted="vae", flag="--vae", source="--vae y")


def test_a_dit_given_as_text_encoder():
    with pytest.raises(WeightsError) as caught:
        check_role(layout("wan21_t2v_1_3b"), wanted="text-encoder", flag="--t5", source="--t5 z")
    assert caught.value.message == "--t5 z looks like a Wan DiT, not a UMT5 text encoder."
    assert caught.value.hint == "Give it as --dit. --t5 takes a UMT5 text encoder."


FITTING = [
    ("wan21_t2v_1_3b", "t2v-1.3B"),
    ("wan21_t2v_14b", "t2v-14B"),
    ("wan21_t2v_14b", "t2i-14B"),
    ("wan21_t2v_14b", "t2v-A14B"),
    ("wan21_i2v_14b_480p", "i2v-14B"),
    ("wan21_flf2v_14b", "flf2v-14B"),
    ("wan21_fun_control_1_3b", "t2v-1.3B-FC"),
    ("wan21_fun_control_14b", "i2v-14B-FC"),
    ("wan21_fun_inp_1_3b", "i2v-14B"),
    ("wan22_i2v_a14b", "i2v-A14B"),
]


@pytest.mark.parametrize(("name", "task"), FITTING)
def test_a_task_that_fits(name, task):
    check_task(detect(layout(name), {}), task)


MISMATCHED = [
    (
        "wan21_i2v_14b_480p",
        "t2v-14B",
        "This checkpoint takes 36 input channels (image-to-video with CLIP features) but the job says t2v-14B.",
        "Choose --task i2v-14B, or another --dit.",
    ),
    (
        "wan21_t2v_1_3b",
        "t2v-14B",
        "This checkpoint is a 1.3B model (width 1536) but the job says t2v-14B.",
        "Choose --task t2v-1.3B, or another --dit.",
    ),
    ("wan21_t2v_14b", "t2v-1.3B", "This checkpoint is a 14B model (width 5120)", "Choose --task t2v-14B"),
    ("wan21_t2v_1_3b", "t2v-A14B", "This checkpoint is a 1.3B model (width 1536)", "Choose --task t2v-1.3B"),
    ("wan22_t2v_a14b", "i2v-A14B", "takes 16 input channels (text-to-video)", "t2v-A14B"),
    ("wan22_i2v_a14b", "t2v-A14B", "without CLIP features", "Choose --task i2v-A14B"),
    ("wan21_t2v_14b", "i2v-14B", "takes 16 input channels (text-to-video)", "t2v-14B or t2i-14B or t2v-A14B"),
    ("wan21_flf2v_14b", "i2v-14B", "first and last frame", "flf2v-14B"),
    ("wan21_i2v_14b_480p", "flf2v-14B", "image-to-video", "i2v-14B"),
    ("wan22_i2v_a14b", "i2v-14B", "without CLIP features", "i2v-A14B"),
    ("wan21_fun_control_14b", "t2v-14B", "48 input channels (Fun-Control)", "t2v-14B-FC or i2v-14B-FC"),
]


@pytest.mark.parametrize(("name", "task", "message", "hint"), MISMATCHED)
def test_a_task_that_does_not_fit_says_which_would(name, task, message, hint):
    with pytest.raises(WeightsError) as caught:
        check_task(detect(layout(name), {}), task)
    assert message in caught.value.message and hint in caught.value.hint


def test_small_models_do_any_task_of_their_kind():
    small = detect(tiny(), {"head_dim": "32"})
    assert small.name == "t2v"
    for task in ("t2v-1.3B", "t2v-14B", "t2i-14B"):
        check_task(small, task)
    with pytest.raises(WeightsError, match="but the job says i2v-14B"):
        check_task(small, "i2v-14B")


def test_hints_name_tasks_that_the_commands_have():
    """Every task that a hint can propose can be chosen."""
    from engine.contract.commands import find, sections_of
    from engine.contract.schema import listed

    for verb in ("train", "generate"):
        task = listed(sections_of(find(verb), "wan"))["task"]
        assert set(_TASKS) == set(task.choices)


def test_a_model_for_another_vae_fits_no_task():
    config = detect(tiny(dim=256, in_dim=48, out=48), {}).config
    with pytest.raises(WeightsError, match="another VAE") as caught:
        check_task(Variant(family="wan", name="ti2v", config=config), "t2v-14B")
    assert caught.value.hint == "Choose another --dit."
    with pytest.raises(WeightsError, match="no Wan task 't2v'"):
        check_task(Variant(family="wan", name="ti2v", config=config), "t2v")
