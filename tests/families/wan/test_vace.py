"""VACE: the DiT's second row of blocks, what it is conditioned on, what it shares with the model that it is of."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from engine.contract.cli import parse
from engine.contract.errors import OptionError
from engine.families.wan import conditions, keys, model, options, pictures, sample, tiny
from engine.families.wan.detect import detect
from engine.lora.network import create, targets
from engine.memory.checkpointing import checkpoint_blocks
from engine.memory.compile import compile_blocks
from engine.memory.pieces import run_in_pieces
from engine.memory.streaming import stream_blocks
from engine.tasks.lora_targets import checkpoint_target, lora_target
from engine.tasks.planned_weights import PlannedDit
from tests.layouts.checks import HERE, read_layout

CONFIG = tiny.CONFIGS["vace-1.3B"]


def dit():
    torch.manual_seed(1)
    built = model.build(CONFIG, device="cpu")
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 12)
    return built


def inputs(batch: int = 1):
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    text = [normal(5 + 3 * index, CONFIG.text_dim) for index in range(batch)]
    return normal(batch, 16, 3, 4, 6), torch.full((batch,), 300.0), {"text": text, "vace": normal(batch, 96, 3, 4, 6)}


# ------------------------------------------------------------------------------------------------------------- numbers


@pytest.fixture(scope="module")
def theirs():
    from diffusers import WanVACETransformer3DModel

    torch.manual_seed(0)
    found = WanVACETransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=128, in_channels=16, out_channels=16,
        text_dim=24, freq_dim=32, ffn_dim=96, num_layers=5, cross_attn_norm=True, rope_max_seq_len=32,
        vace_layers=[0, 2], vace_in_channels=96,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn(parameter.shape) / 16)
    return found


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_equals_diffusers(theirs, tmp_path, strength):
    """Loaded from the folder that diffusers saves; its list of places is not written into weights."""
    theirs.save_pretrained(tmp_path)
    ours = model.load(tmp_path, task=None, device="cpu")
    assert ours.variant.name == "vace" and list(ours.config.vace_places) == [0, 2]
    generator = torch.Generator().manual_seed(3)
    x_BCTHW, context_BCTHW = (torch.randn(2, channels, 3, 4, 6, generator=generator) for channels in (16, 96))
    text = [torch.randn(length, 24, generator=generator) for length in (5, 9)]
    padded = torch.stack([nn.functional.pad(one, (0, 0, 0, 512 - len(one))) for one in text])
    timestep_B = torch.tensor([40.5, 900.0])
    with torch.no_grad():
        wanted = theirs(
            x_BCTHW, timestep_B, padded, control_hidden_states=context_BCTHW,
            control_hidden_states_scale=torch.full((2,), strength), return_dict=False,
        )[0]  # fmt: skip
        cond = {"text": text, "vace": context_BCTHW, "vace_strength": strength}
        found = model.velocity(ours, x_BCTHW, timestep_B, cond)
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_without_strength_it_is_the_model_it_is_of():
    whole, (x_BCTHW, timestep_B, cond) = dit(), inputs(2)
    plain = model.build(dataclasses.replace(CONFIG, vace_dim=None, vace_count=0), device="cpu")
    plain.load_state_dict({name: value for name, value in whole.state_dict().items() if "vace_" not in name})
    wanted = model.velocity(plain, x_BCTHW, timestep_B, {"text": cond["text"]})
    assert torch.equal(model.velocity(whole, x_BCTHW, timestep_B, {"text": cond["text"]}), wanted)
    assert torch.equal(model.velocity(whole, x_BCTHW, timestep_B, {**cond, "vace_strength": 0.0}), wanted)
    assert (model.velocity(whole, x_BCTHW, timestep_B, cond) - wanted).abs().max() > 1e-3


# ---------------------------------------------------------------------------------------------------------- the blocks


def test_blocks_come_in_the_order_in_which_they_run():
    built, (x_BCTHW, timestep_B, cond) = dit(), inputs()
    ran: list[nn.Module] = []
    for block in (*built.blocks, *built.vace_blocks):
        block.register_forward_pre_hook(lambda block, _: ran.append(block))
    model.velocity(built, x_BCTHW, timestep_B, cond)
    assert list(map(id, ran)) == list(map(id, model.blocks(built)))
    assert len(ran) == CONFIG.num_layers + CONFIG.vace_count
    assert {name.split(".")[0] for name in built.state_dict()} >= {"blocks", "vace_blocks"}  # under their own names


def test_the_planner_counts_each_block_of_a_public_file_where_it_runs(tmp_path):
    """Streaming takes blocks by their place, so the plan has to know which bytes are at which."""
    paths = tiny.write_tiny_models(tmp_path, variant="vace-1.3B")
    job = parse([
        "generate", "wan", "--task", "vace-1.3B", "--dit", str(paths["dit"]), "--vae", str(paths["vae"]), "--t5",
        str(paths["t5"]), "--prompt", "a", "--save_path", str(tmp_path), "--src_ref_images", "a.png", "b.png",
    ])  # fmt: skip
    planned = PlannedDit(job, str(paths["dit"]))
    built = model.build(planned.config)
    sizes = [sum(p.numel() * 4 for p in block.parameters()) for block in model.blocks(built)]
    assert planned.weights(job, trained=False).blocks == tuple(sizes)
    assert planned.work(job, (3, 6, 8)).tokens == 5 * 3 * 4  # two reference images are two latent frames


@pytest.mark.parametrize("count", [1, 6])
def test_streamed_blocks_give_the_same_video(count):
    built, (x_BCTHW, timestep_B, cond) = dit(), inputs()
    with torch.no_grad():
        wanted = model.velocity(built, x_BCTHW, timestep_B, cond)
        stream_blocks(model.blocks(built), count, device="cpu")
        for _ in range(2):
            assert torch.equal(model.velocity(built, x_BCTHW, timestep_B, cond), wanted)


def test_gradients_are_the_same_checkpointed_and_in_pieces():
    """Also those of adapters behind what `TOKENWISE` names: the block's result is not its last part's."""

    def gradients(*, saved: bool) -> list[torch.Tensor]:
        built, (x_BCTHW, timestep_B, cond) = dit(), inputs()
        torch.manual_seed(4)
        classes = (*keys.LORA_BLOCKS, "VaceWanAttentionBlock")
        network = create(built, block_classes=classes, exclude=keys.LORA_EXCLUDE, dim=2, alpha=2)
        network.requires_grad_(True)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(torch.randn(parameter.shape) / 8)
        if saved:
            run_in_pieces(model.blocks(built), 2, whole_below=1)
            checkpoint_blocks(model.blocks(built))
        model.velocity(built, x_BCTHW, timestep_B, cond).square().sum().backward()
        return [parameter.grad for parameter in network.parameters()]

    for one, other in zip(gradients(saved=False), gradients(saved=True), strict=True):
        assert (one - other).abs().max() <= 1e-4 * one.abs().max().clamp(min=1.0)


def test_compiled_blocks_are_one_graph_each():
    """The graph of the first of the second row differs from the others': it lets the video's tokens in."""
    built, (x_BCTHW, timestep_B, cond) = dit(), inputs()
    with torch.no_grad():
        wanted = model.velocity(built, x_BCTHW, timestep_B, cond)
        compile_blocks(model.blocks(built), backend="eager", fullgraph=True)
        assert (model.velocity(built, x_BCTHW, timestep_B, cond) - wanted).abs().max() <= 1e-5


def test_its_blocks_may_be_in_fp8_and_the_camera_adapter_may_not():
    assert keys.is_fp8_weight("vace_blocks.0.before_proj") and keys.is_fp8_weight("vace_blocks.1.self_attn.q")
    assert not keys.is_fp8_weight("control_adapter.residual_blocks.0.conv1")
    assert not keys.is_fp8_weight("vace_patch_embedding")


def test_skipped_layers_are_the_models_own():
    request = SimpleNamespace(settings={"reference_image_path": None}, skip_layers=(4,))
    with pytest.raises(OptionError, match="0 to 3"):
        sample.check_request(request, dit())


# ----------------------------------------------------------------------------------------------------------------- LoRA


def test_a_lora_goes_where_it_goes_in_the_model_it_is_of():
    """So that each LoRA of t2v fits, and what is trained here fits t2v."""
    layouts = [read_layout(HERE / f"wan21_{name}_14b.json.gz") for name in ("vace", "t2v")]
    found = [
        set(targets(model.build(detect(one, {}).config), block_classes=keys.LORA_BLOCKS, exclude=[keys.LORA_EXCLUDE]))
        for one in layouts
    ]
    assert found[0] == found[1] and len(found[0]) == 400


@pytest.mark.parametrize(
    "stem",
    [
        "diffusion_model.vace_blocks.1.self_attn.q",
        "lora_unet_vace_blocks_1_self_attn_q",
        "transformer.vace_blocks.1.attn1.to_q",
    ],
)
def test_loras_of_its_own_blocks_are_found_by_every_name(stem):
    place = lora_target("wan", model.build(CONFIG)).find(stem)
    assert place is not None and place.modules == ("vace_blocks.1.self_attn.q",)


def test_diffusers_names_go_there_and_back(theirs):
    ours = [keys.dit_name(name) for name in theirs.state_dict()]
    assert [keys.dit_name_diffusers(name) for name in ours] == list(theirs.state_dict())
    assert {"vace_blocks.0.before_proj.weight", "vace_blocks.1.after_proj.bias"} <= set(ours)


def test_a_checkpoint_of_comfyui_is_recognised_under_its_prefix(tmp_path):
    path = tmp_path / "vace.safetensors"
    save_file({f"model.diffusion_model.{name}": value for name, value in dit().state_dict().items()}, path)
    assert model.load(path, task="vace-14B", device="cpu").variant.config == CONFIG
    assert checkpoint_target("wan", str(path)).find("diffusion_model.vace_blocks.0.before_proj") is not None


# --------------------------------------------------------------------------------------------------------- conditioning


@pytest.mark.parametrize(("frames", "references"), [(1, 0), (9, 0), (9, 1)])
def test_context_is_diffusers(diffusers_vae, encode, frames, references):
    from diffusers import WanVACEPipeline

    generator = torch.Generator().manual_seed(1)
    clip_BCFHW = torch.rand(1, 3, frames, 32, 48, generator=generator) * 2 - 1
    mask_BFHW = torch.rand(1, frames, 32, 48, generator=generator)
    shown = [torch.rand(1, 3, 32, 48, generator=generator) * 2 - 1 for _ in range(references)]
    config = SimpleNamespace(patch_size=(1, 2, 2))
    parts = SimpleNamespace(
        vae=diffusers_vae, vae_scale_factor_temporal=4, vae_scale_factor_spatial=8,
        transformer=SimpleNamespace(config=config),
    )  # fmt: skip
    mask_BCFHW, batch = mask_BFHW.unsqueeze(1).expand(-1, 3, -1, -1, -1), [[one[0] for one in shown]]
    latents = WanVACEPipeline.prepare_video_latents(parts, clip_BCFHW, mask_BCFHW, batch, device=torch.device("cpu"))
    wanted = torch.cat([latents, WanVACEPipeline.prepare_masks(parts, mask_BCFHW, batch)], dim=1)
    found = conditions.vace_context(encode, clip_BCFHW, mask_BFHW, references_BCHW=shown)
    assert torch.equal(found[:, 32:], wanted[:, 32:]) and (found - wanted).abs().max() <= 1e-5


def test_reference_images_stand_in_the_order_in_which_they_are_given(encode):
    """As in the official code. diffusers puts the last one first."""
    clip_BCFHW, mask_BFHW = torch.zeros(1, 3, 5, 32, 32), torch.ones(1, 5, 32, 32)
    first, second = torch.full((1, 3, 32, 32), -0.5), torch.full((1, 3, 32, 32), 0.5)
    found = conditions.vace_context(encode, clip_BCFHW, mask_BFHW, references_BCHW=[first, second])
    assert found.shape == (1, 96, 4, 4, 4)
    assert torch.equal(found[:, :16, :1], encode(first.unsqueeze(2)))
    assert torch.equal(found[:, :16, 1:2], encode(second.unsqueeze(2)))
    assert not found[:, 16:, :2].any() and found[:, 32:, 2:].eq(1).all()


def test_a_reference_image_is_whole_in_the_middle_of_white():
    wide = np.zeros((10, 40, 3), dtype=np.uint8)
    found = pictures.on_white(wide, (32, 16))
    assert found.shape == (1, 3, 16, 32)
    assert found[:, :, 4:12].eq(-1).all() and found[:, :, :4].eq(1).all() and found[:, :, 12:].eq(1).all()


def test_it_generates_only_and_says_what_to_train():
    with pytest.raises(OptionError, match="--task vace-14B generates only") as caught:
        options._check_trains("vace-14B")
    assert "Train with --task t2v-14B" in caught.value.hint
