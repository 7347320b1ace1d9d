"""Weight names, what LoRA and fp8 go on, and HunyuanVideo LoRAs made to fit."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from engine.contract.errors import WeightsError
from engine.families.framepack import keys
from engine.families.framepack.detect import detect
from engine.families.framepack.model import build
from engine.lora.files import read_lora
from engine.lora.names import LoraTarget
from engine.lora.network import kohya_name, targets
from engine.tasks.lora_targets import lora_target
from tests.layouts.checks import HERE, read_layout, renamed

FULL = read_layout(HERE / "framepack_i2v_hy.json.gz")
WIDTH, HIDDEN, RANK = 8, 32, 3


@pytest.mark.parametrize("prefix", ["", *keys.PREFIXES])
def test_prefixes_come_off_and_nothing_else(prefix):
    assert renamed({prefix + name: shape for name, shape in FULL.items()}, keys.dit_name) == FULL


def test_names_that_convert_lora_spoils_are_found():
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
    target = lora_target("framepack", build(detect(FULL, {}).config))
    assert {name: target.find(name).modules[0] for name in spoilt} == spoilt


def test_lora_and_fp8_targets_of_the_full_model():
    model = build(detect(FULL, {}).config)
    paths = targets(model, block_classes=keys.LORA_BLOCKS, exclude=[keys.LORA_EXCLUDE])
    assert len(paths) == 440
    assert {kohya_name(path) for path in paths} == {
        name.split(".")[0] for name in read_layout(HERE / "lora_framepack_musubi.json.gz")
    }
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {name for name in linear if keys.keeps_fp8(name)} == set(paths)
    assert keys.diffusers_parts("proj_out") == ("proj_out",)


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


def rows_of(path: str) -> int:
    if path.endswith("proj_mlp") or path.endswith("net.0.proj"):
        return HIDDEN
    return WIDTH * {"norm1.linear": 6, "norm1_context.linear": 6, "norm.linear": 3}.get(path.split(".", 2)[2], 1)


def target() -> LoraTarget:
    return LoraTarget(
        {path: (rows_of(path), 1) for path in EXPECTED}, rename=keys.dit_name, lora_pieces=keys.lora_pieces
    )


@pytest.mark.parametrize("naming", ["musubi", "diffusion-pipe", "comfy"])
def test_hunyuan_loras_change_the_same_rows(tmp_path, naming):
    """Each of our modules changes by the rows of the module that it is a part of in HunyuanVideo."""
    tensors, changes = hunyuan_lora(naming)
    save_file(tensors, tmp_path / "a.safetensors")
    read = read_lora(tmp_path / "a.safetensors", target())
    assert read.modules.keys() == EXPECTED.keys() and read.unmatched == ()
    for path, (theirs, start) in EXPECTED.items():
        found = read.modules[path].change()
        assert torch.allclose(found, changes[theirs][start : start + len(found)], atol=1e-5), path


def test_full_differences_are_cut_too(tmp_path):
    weight = torch.arange((3 * WIDTH + HIDDEN) * WIDTH, dtype=torch.float32).view(-1, WIDTH)
    bias = torch.arange(3 * WIDTH + HIDDEN)
    name = "diffusion_model.single_blocks.2.linear1"
    save_file({f"{name}.diff": weight, f"{name}.diff_b": bias}, tmp_path / "a.safetensors")
    found = read_lora(tmp_path / "a.safetensors", target()).differences
    assert torch.equal(found["single_transformer_blocks.2.attn.to_k.weight"], weight[WIDTH : 2 * WIDTH])
    assert torch.equal(found["single_transformer_blocks.2.proj_mlp.bias"], bias[3 * WIDTH :])


def test_framepack_loras_are_no_hunyuan_ones():
    for path in targets(build(detect(FULL, {}).config), block_classes=keys.LORA_BLOCKS):
        assert keys.lora_pieces(path.replace(".", "_")) == ()


def test_what_cannot_be_cut_is_refused_or_reported(tmp_path):
    tensors = {
        "lora_unet_single_blocks_2_linear1.lora_down.weight": torch.zeros(RANK, WIDTH),
        "lora_unet_single_blocks_2_linear1.lora_up.weight": torch.zeros(2 * WIDTH, RANK),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="16 output features are meant for single_transformer_blocks.2.attn.to_q"):
        read_lora(tmp_path / "a.safetensors", target())
    tensors = {"lora_unet_double_blocks_1_something_else.alpha": torch.tensor(1.0), **hunyuan_lora("musubi")[0]}
    save_file(tensors, tmp_path / "b.safetensors")
    found = read_lora(tmp_path / "b.safetensors", target())
    assert found.unmatched == ("lora_unet_double_blocks_1_something_else.alpha",)


PARTS = ["single", "transformer", "blocks", "transformer_blocks", "3", "x", "", "attn", "to", "q", "proj", "mlp"]
PARTS += ["model", "diffusion_model", "module", "rope", "weight", "norm1", "context", "linear", "double_blocks"]


@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=7).map(".".join))
def test_no_name_makes_a_map_fail(name):
    assert keys.dit_name(name) is None or isinstance(keys.dit_name(name), str)
    assert isinstance(keys.lora_pieces(name.replace(".", "_")), tuple)
