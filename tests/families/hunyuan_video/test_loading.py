"""Files of every layout load to the same model; what acts on blocks (LoRA, fp8, streaming) acts on these."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.checkpoint import checkpoint

from engine.contract.errors import OptionError, WeightsError
from engine.families.hunyuan_video import keys
from engine.families.hunyuan_video.layers import MMDoubleStreamBlock
from engine.families.hunyuan_video.model import blocks, build, load, velocity
from engine.lora.files import read_lora
from engine.lora.network import create
from engine.memory.checkpointing import checkpoint_blocks
from engine.memory.fp8 import Fp8Linear, QuantizeOnLoad
from engine.memory.streaming import stream_blocks
from engine.parts.weights import write_weights
from engine.tasks.lora_targets import lora_target
from tests.families.hunyuan_video.test_model import TINY, inputs, randomised

METADATA = {"head_dim": "32"}


def comfy(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """ComfyUI's names, by the reverse of our map's tables."""
    back = {ours: theirs for theirs, ours in [*keys._COMFY_DOUBLE.items(), *keys._COMFY_SINGLE.items()]}
    found = {}
    for name, tensor in state.items():
        for ours, theirs in back.items():
            if name.startswith(("double", "single")) and f".{ours}." in f"{name}.":
                name = name.replace(ours, theirs)
                break
        found[f"model.model.{name}"] = tensor
    return found


def diffusers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors that diffusers keeps apart, split; the last modulation's halves swapped."""
    found = dict(state)
    for theirs, ours, layers in keys._FUSED:
        for name in [name for name in state if name.startswith(ours + ".")]:
            number, _, rest = name[len(ours) + 1 :].partition(".")
            layer, _, kind = rest.rpartition(".")
            if layer in layers:
                parts = found.pop(name).split([TINY.dim] * 3 + [TINY.ffn_dim] * (len(layers[layer]) - 3))
                found |= {
                    f"{theirs}.{number}.{part}.{kind}": rows for part, rows in zip(layers[layer], parts, strict=True)
                }
    for kind in ("weight", "bias"):
        first, second = found.pop(f"final_layer.adaLN_modulation.1.{kind}").chunk(2)
        found[f"norm_out.linear.{kind}"] = torch.cat([second, first])
    return found


LAYOUTS = {
    "tencent": dict,
    "tencent.pt": lambda state: {"module": state},
    "comfy": comfy,
    "diffusers": diffusers,
    "diffusion_model.": lambda state: {f"diffusion_model.{name}": tensor for name, tensor in state.items()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads_to_the_same_model(tmp_path, layout):
    model = wide() if layout.endswith("pt") else randomised()
    content = LAYOUTS[layout](model.state_dict())
    path = tmp_path / f"hunyuan.{'pt' if layout.endswith('pt') else 'safetensors'}"
    if layout.endswith("pt"):
        torch.save(content, path)
    else:
        write_weights(path, content, metadata=METADATA)
    seen = []
    loaded = load(path, task="t2v", device="cpu", transform=lambda name, tensor: seen.append(name) or tensor)
    assert loaded.variant.name == "t2v" and loaded.config == model.config
    assert set(seen) == set(model.state_dict())  # LoRA merging sees whole tensors by our names
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


def wide():
    """A .pt file has no metadata, so its heads are of 128."""
    return randomised(dataclasses.replace(TINY, dim=128, num_heads=1, head_dim=128, num_single_blocks=1))


def test_load_reads_scaled_fp8_in_parts(tmp_path):
    """A scale for each of query, key and value, which come together to one matrix."""
    model = randomised()
    content = {}
    for name, value in diffusers(model.state_dict()).items():
        content[name] = value.contiguous()
        if "_blocks." in name and name.endswith("weight") and value.ndim == 2:
            scale = value.abs().amax() / 448
            content[name] = (value / scale).to(torch.float8_e4m3fn)
            content[name.replace(".weight", ".scale_weight")] = scale
    save_file(content, tmp_path / "fp8.safetensors", metadata=METADATA)
    loaded = load(tmp_path / "fp8.safetensors", task=None, device="cpu", dtype=torch.float32)
    wanted = velocity(model, *inputs())
    assert (velocity(loaded, *inputs()) - wanted).norm() / wanted.norm() < 0.1
    assert load(tmp_path / "fp8.safetensors", task=None, device="cpu").dtype == torch.bfloat16


def test_load_refuses_in_one_line(tmp_path):
    model, path = randomised(), tmp_path / "hunyuan.safetensors"
    write_weights(path, model.state_dict(), metadata=METADATA)
    with pytest.raises(WeightsError, match=r"takes 4 input channels \(text-to-video\) but the job says i2v"):
        load(path, task="i2v", device="cpu")
    state = diffusers(model.state_dict())
    state.pop("single_transformer_blocks.1.proj_mlp.weight")
    write_weights(path, state, metadata=METADATA)
    with pytest.raises(WeightsError, match=r"1 missing \(single_blocks.1.linear1.weight\); 3 not expected \(single_tr"):
        load(path, task=None, device="cpu")
    with pytest.raises(OptionError, match="no attention backend"):
        build(TINY, attention_backend="fast")


def test_fp8_while_loading_takes_fused_matrices(tmp_path):
    model, path = randomised(), tmp_path / "hunyuan.safetensors"
    write_weights(path, diffusers(model.state_dict()), metadata=METADATA)
    quantizer = QuantizeOnLoad(build(TINY), wanted=keys.keeps_fp8, mode="block")
    loaded = load(path, task=None, device="cpu", transform=quantizer)
    assert len(quantizer.install(loaded)) == 2 * 8 + 3 * 2
    assert isinstance(loaded.double_blocks[0].img_attn_qkv, Fp8Linear)
    wanted = velocity(model, *inputs())
    assert (velocity(loaded, *inputs()) - wanted).norm() / wanted.norm() < 0.1


LORA_NAMES = {
    "musubi": "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
    "convert_lora": "diffusion_model.double_blocks.0.img_attn_qkv.lora_A.weight",
    "diffusion-pipe": "transformer.double_blocks.0.img_attn_qkv.lora_A.weight",
    "comfy": "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight",
}


@pytest.mark.parametrize("naming", LORA_NAMES)
def test_loras_of_every_naming_find_their_module(tmp_path, naming):
    name = LORA_NAMES[naming]
    up = name.replace("lora_down", "lora_up").replace("lora_A", "lora_B")
    save_file({name: torch.ones(2, 64), up: torch.ones(192, 2)}, tmp_path / "lora.safetensors")
    found = read_lora(tmp_path / "lora.safetensors", lora_target("hunyuan_video", build(TINY)))
    assert list(found.modules) == ["double_blocks.0.img_attn_qkv"] and not found.unmatched


def gradients(model) -> tuple[torch.Tensor, torch.Tensor]:
    """The result, and the gradient of its square by x, through a LoRA on every default module."""
    x_BCTHW, timestep_B, cond = inputs()
    x_BCTHW.requires_grad_()
    out = velocity(model, x_BCTHW, timestep_B, cond)
    out.square().sum().backward()
    return out.detach(), x_BCTHW.grad


def test_streamed_and_checkpointed_blocks_give_the_same_gradient():
    """Both kinds of blocks, of different sizes, in one stream; checkpoints recompute tuples as well as tensors."""
    out, wanted = gradients(randomised())
    model = randomised()
    network = create(model, block_classes=keys.LORA_BLOCKS, exclude=keys.LORA_EXCLUDE, dim=2)
    assert len(network.paths) == 2 * 8 + 3 * 2
    network.requires_grad_(True)
    stream = stream_blocks(blocks(model), 4, device="cpu")
    offload = checkpoint_blocks(blocks(model), offload=True, smallest_offload=1)
    found, gradient = gradients(model)
    assert stream.copies > 4 and offload.moved > 0
    assert torch.equal(found, out)
    assert (gradient - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    ups = [value.grad for name, value in network.named_parameters() if name.endswith("lora_up.weight")]
    # of the last block only image tokens count, but every module sees them
    assert len(ups) == 22 and sum(bool(up.abs().sum() > 0) for up in ups) == 22


def test_blocks_can_be_compiled_alone():
    """Blocks take plain tensors: no graph break where captions have one length."""
    model, lengths = randomised(), (4, 4)
    wanted = velocity(model, *inputs(lengths=lengths))
    for block in blocks(model):
        compiled = torch.compile(block.forward, backend="eager", fullgraph=True)
        block.forward = lambda *given, run=compiled: checkpoint(run, *given, use_reentrant=False)
    assert isinstance(model.double_blocks[0], MMDoubleStreamBlock)
    assert (velocity(model, *inputs(lengths=lengths)) - wanted).abs().max() < 1e-5
    mixed = velocity(randomised(), *inputs())
    for block in blocks(model):
        block.forward = torch.compile(type(block).forward.__get__(block), backend="eager")
    assert (velocity(model, *inputs()) - mixed).abs().max() < 1e-5
