"""Weight names, what LoRA and fp8 go on, and HunyuanVideo LoRAs made to fit."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from engine.families.framepack import keys
from engine.families.framepack.detect import detect
from engine.families.framepack.model import build
from engine.lora.files import read_lora
from engine.lora.network import kohya_name, targets
from tests.layouts.checks import HERE, read_layout, renamed

FULL = read_layout(HERE / "framepack_i2v_hy.json.gz")
WIDTH, HIDDEN, RANK = 8, 32, 3


@pytest.mark.parametrize("prefix", ["", *keys.PREFIXES])
def test_prefixes_come_off_and_nothing_else(prefix):
    assert renamed({prefix + name: shape for name, shape in FULL.items()}, keys.dit_name) == FULL


def test_names_that_convert_lora_spoils_come_back():
    """musubi-tuner's convert_lora turns `_` of a FramePack name into `.`, unless a Qwen-Image name looks alike."""
    spoilt = {
        "diffusion_model.transformer.blocks.3.ff.context.net.0.proj": "transformer_blocks.3.ff_context.net.0.proj",
        "diffusion_model.transformer.blocks.3.norm1.context.linear": "transformer_blocks.3.norm1_context.linear",
        "diffusion_model.transformer.blocks.3.attn.add.q.proj": "transformer_blocks.3.attn.add_q_proj",
        "diffusion_model.transformer.blocks.3.attn.to.add.out": "transformer_blocks.3.attn.to_add_out",
        "diffusion_model.transformer_blocks.3.attn.to_q": "transformer_blocks.3.attn.to_q",
        "diffusion_model.single.transformer.blocks.11.proj.mlp": "single_transformer_blocks.11.proj_mlp",
        "diffusion_model.single.transformer.blocks.11.attn.to.v": "single_transformer_blocks.11.attn.to_v",
    }
    assert {name: keys.dit_name(name) for name in spoilt} == spoilt


def test_lora_and_fp8_targets_of_the_full_model():
    model = build(detect(FULL, {}).config)
    paths = targets(model, block_classes=keys.LORA_BLOCKS, exclude=[keys.LORA_EXCLUDE])
    assert len(paths) == 440
    assert {kohya_name(path) for path in paths} == {
        name.split(".")[0] for name in read_layout(HERE / "lora_framepack_musubi.json.gz")
    }
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {name for name in linear if keys.keeps_fp8(name)} == set(paths)
    assert keys.dit_name_diffusers("proj_out.weight") == "proj_out.weight"


def hunyuan_lora(naming: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A HunyuanVideo LoRA of one double and one single block under a tool's names, and each module's weight change."""
    torch.manual_seed(3)
    modules = {
        "double_blocks.1.img_mod.linear": (6 * WIDTH, WIDTH),
        "double_blocks.1.img_attn_qkv": (3 * WIDTH, WIDTH),
        "double_blocks.1.img_attn_proj": (WIDTH, WIDTH),
        "double_blocks.1.img_mlp.fc1": (HIDDEN, WIDTH),
        "double_blocks.1.img_mlp.fc2": (WIDTH, HIDDEN),
        "double_blocks.1.txt_mod.linear": (6 * WIDTH, WIDTH),
        "double_blocks.1.txt_attn_qkv": (3 * WIDTH, WIDTH),
        "double_blocks.1.txt_attn_proj": (WIDTH, WIDTH),
        "double_blocks.1.txt_mlp.fc1": (HIDDEN, WIDTH),
        "double_blocks.1.txt_mlp.fc2": (WIDTH, HIDDEN),
        "single_blocks.2.linear1": (3 * WIDTH + HIDDEN, WIDTH),
        "single_blocks.2.linear2": (WIDTH, WIDTH + HIDDEN),
        "single_blocks.2.modulation.linear": (3 * WIDTH, WIDTH),
    }
    tensors, changes = {}, {}
    for path, (rows, columns) in modules.items():
        down, up = torch.randn(RANK, columns), torch.randn(rows, RANK)
        alpha = 1.5 if naming == "musubi" else float(RANK)
        changes[path] = up @ down * alpha / RANK
        if naming == "musubi":
            name = "lora_unet_" + path.replace(".", "_")
            tensors |= {f"{name}.alpha": torch.tensor(alpha), f"{name}.lora_down.weight": down}
            tensors[f"{name}.lora_up.weight"] = up
            continue
        if naming == "comfy":
            path = re.sub(r"_(attn)_(qkv|proj)", r"_\1.\2", path).replace("mod.linear", "mod.lin")
            path = (
                path.replace("mlp.fc1", "mlp.0")
                .replace("mlp.fc2", "mlp.2")
                .replace("modulation.linear", "modulation.lin")
            )
        prefix = {"diffusion-pipe": "transformer.", "comfy": "diffusion_model."}[naming]
        tensors |= {f"{prefix}{path}.lora_A.weight": down, f"{prefix}{path}.lora_B.weight": up}
    return tensors, changes


EXPECTED = {
    "transformer_blocks.1.norm1.linear": ("double_blocks.1.img_mod.linear", 0),
    "transformer_blocks.1.attn.to_q": ("double_blocks.1.img_attn_qkv", 0),
    "transformer_blocks.1.attn.to_k": ("double_blocks.1.img_attn_qkv", WIDTH),
    "transformer_blocks.1.attn.to_v": ("double_blocks.1.img_attn_qkv", 2 * WIDTH),
    "transformer_blocks.1.attn.to_out.0": ("double_blocks.1.img_attn_proj", 0),
    "transformer_blocks.1.ff.net.0.proj": ("double_blocks.1.img_mlp.fc1", 0),
    "transformer_blocks.1.ff.net.2": ("double_blocks.1.img_mlp.fc2", 0),
    "transformer_blocks.1.norm1_context.linear": ("double_blocks.1.txt_mod.linear", 0),
    "transformer_blocks.1.attn.add_q_proj": ("double_blocks.1.txt_attn_qkv", 0),
    "transformer_blocks.1.attn.add_k_proj": ("double_blocks.1.txt_attn_qkv", WIDTH),
    "transformer_blocks.1.attn.add_v_proj": ("double_blocks.1.txt_attn_qkv", 2 * WIDTH),
    "transformer_blocks.1.attn.to_add_out": ("double_blocks.1.txt_attn_proj", 0),
    "transformer_blocks.1.ff_context.net.0.proj": ("double_blocks.1.txt_mlp.fc1", 0),
    "transformer_blocks.1.ff_context.net.2": ("double_blocks.1.txt_mlp.fc2", 0),
    "single_transformer_blocks.2.attn.to_q": ("single_blocks.2.linear1", 0),
    "single_transformer_blocks.2.attn.to_k": ("single_blocks.2.linear1", WIDTH),
    "single_transformer_blocks.2.attn.to_v": ("single_blocks.2.linear1", 2 * WIDTH),
    "single_transformer_blocks.2.proj_mlp": ("single_blocks.2.linear1", 3 * WIDTH),
    "single_transformer_blocks.2.proj_out": ("single_blocks.2.linear2", 0),
    "single_transformer_blocks.2.norm.linear": ("single_blocks.2.modulation.linear", 0),
}


@pytest.mark.parametrize("naming", ["musubi", "diffusion-pipe", "comfy"])
def test_hunyuan_loras_change_the_same_rows(tmp_path, naming):
    """Read back like any LoRA, each of our modules changes by the rows of the module that it was cut from."""
    tensors, changes = hunyuan_lora(naming)
    converted = {name: tensor.clone() for name, tensor in keys.from_hunyuan_lora(tensors).items()}
    save_file(converted, tmp_path / "a.safetensors")
    read = read_lora(tmp_path / "a.safetensors", module_names=EXPECTED)
    assert read.modules.keys() == EXPECTED.keys() and read.unmatched == ()
    for path, (theirs, start) in EXPECTED.items():
        found = read.modules[path].change()
        assert torch.allclose(found, changes[theirs][start : start + len(found)], atol=1e-5), path


def test_full_differences_are_cut_too():
    weight = torch.arange(7 * WIDTH * WIDTH, dtype=torch.float32).view(7 * WIDTH, WIDTH)
    bias = torch.arange(7 * WIDTH)
    found = keys.from_hunyuan_lora(
        {"diffusion_model.single_blocks.0.linear1.diff": weight, "diffusion_model.single_blocks.0.linear1.diff_b": bias}
    )
    assert torch.equal(found["lora_unet_single_transformer_blocks_0_attn_to_k.diff"], weight[WIDTH : 2 * WIDTH])
    assert torch.equal(found["lora_unet_single_transformer_blocks_0_proj_mlp.diff_b"], bias[3 * WIDTH :])


def test_framepack_loras_pass_unchanged():
    tensors = {
        name: torch.empty(shape, device="meta")
        for stem in ("lora_framepack_musubi", "lora_framepack_convert_other")
        for name, shape in read_layout(HERE / f"{stem}.json.gz").items()
    }
    found = keys.from_hunyuan_lora(tensors)
    assert found.keys() == tensors.keys() and all(found[name] is tensor for name, tensor in tensors.items())


def test_what_cannot_be_cut_keeps_its_name_and_is_reported():
    tensors = {
        "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": torch.zeros(3 * WIDTH, RANK),  # no down half
        "lora_unet_single_blocks_0_linear1.lora_down.weight": torch.zeros(RANK, WIDTH),
        "lora_unet_single_blocks_0_linear1.lora_up.weight": torch.zeros(2 * WIDTH, RANK),
        "lora_unet_double_blocks_0_something_else.alpha": torch.tensor(1.0),
    }
    found = keys.from_hunyuan_lora(tensors)
    kept = [name for name in tensors if name in found]
    assert kept == [name for name in tensors if "lora_down" not in name]


PARTS = ["single", "transformer", "blocks", "transformer_blocks", "3", "x", "", "attn", "to", "q", "proj", "mlp"]
PARTS += ["model", "diffusion_model", "module", "rope", "weight", "norm1", "context", "linear", "double_blocks"]


@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=7).map(".".join))
def test_no_name_makes_a_map_fail(name):
    assert keys.dit_name(name) is None or isinstance(keys.dit_name(name), str)
    assert set(keys.from_hunyuan_lora({name: torch.zeros(1)})) == {name}
