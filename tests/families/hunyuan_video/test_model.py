"""The HunyuanVideo DiT against diffusers' HunyuanVideoTransformer3DModel, and what the forward pass promises besides.

Tencent's numbers are checked by tests/golden (check_hunyuan_dit).
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel

from engine.families.hunyuan_video.detect import HunyuanVideoConfig
from engine.families.hunyuan_video.model import (
    blocks,
    build,
    cond_from_batch,
    embedded_guidance,
    first_frame_only,
    load,
    velocity,
)
from engine.parts import mmdit

DIFFUSERS = {
    "t2v": {"in_channels": 16, "guidance_embeds": True},
    "t2v-no-guidance": {"in_channels": 16, "guidance_embeds": False},
    "i2v": {"in_channels": 33, "guidance_embeds": False},
    "skyreels-i2v": {"in_channels": 32, "guidance_embeds": True},
}
TINY = HunyuanVideoConfig(
    dim=64, ffn_dim=128, refiner_ffn_dim=96, text_dim=24, pooled_dim=12, in_dim=4, out_dim=4, num_double_blocks=2,
    num_single_blocks=3, num_refiner_blocks=2, num_heads=2, head_dim=32, has_guidance=True,
)  # fmt: skip


def randomised(config: HunyuanVideoConfig = TINY, **options):
    torch.manual_seed(1)
    model = build(config, device="cpu", **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 8)
    return model


def inputs(config: HunyuanVideoConfig = TINY, *, frames: int = 3, lengths: tuple[int, ...] = (3, 7)):
    """x of the model's own channels, timesteps, conditioning with captions of these lengths."""
    torch.manual_seed(2)
    batch = len(lengths)
    x_BCTHW = torch.randn(batch, config.out_dim, frames, 4, 6)
    cond = {
        "text": [torch.randn(length, config.text_dim) for length in lengths],
        "pooled": torch.randn(batch, config.pooled_dim),
        "guidance": torch.linspace(1000.0, 7500.0, batch),
    }
    if config.concat_dim:
        cond["concat"] = torch.randn(batch, config.concat_dim, frames, 4, 6)
    return x_BCTHW, torch.linspace(40.5, 971.25, batch), cond


def padded(text: list[torch.Tensor], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, length, D] with noise where nothing is valid, and the mask."""
    rows = torch.randn(len(text), length, text[0].shape[1])
    mask = torch.zeros(len(text), length, dtype=torch.int64)
    for index, sample in enumerate(text):
        rows[index, : len(sample)], mask[index, : len(sample)] = sample, 1
    return rows, mask


@pytest.fixture(scope="module", params=DIFFUSERS)
def pair(request, tmp_path_factory):
    """diffusers' model with random weights, and ours loaded from the folder that diffusers saves."""
    torch.manual_seed(0)
    theirs = HunyuanVideoTransformer3DModel(
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=128,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=2,
        mlp_ratio=2.0,  # its refiner does not follow it
        text_embed_dim=24,
        pooled_projection_dim=12,
        **DIFFUSERS[request.param],
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn(parameter.shape) / 16)
    return request.param, theirs, tmp_path_factory.mktemp(request.param)


def test_equals_diffusers(pair):
    name, theirs, folder = pair
    theirs.save_pretrained(folder)
    ours = load(folder, task=name.removesuffix("-no-guidance"), device="cpu")
    assert ours.variant.name == name
    x_BCTHW, timestep_B, cond = inputs(ours.config)
    given = torch.cat([x_BCTHW, cond["concat"]], dim=1) if "concat" in cond else x_BCTHW
    text_BLD, mask_BL = padded(cond["text"], 9)
    with torch.no_grad():
        wanted = theirs(
            given,
            timestep_B,
            text_BLD,
            mask_BL,
            cond["pooled"],
            guidance=cond["guidance"] if ours.config.has_guidance else None,
            return_dict=False,
        )[0]
        found = velocity(ours, x_BCTHW, timestep_B, cond)
        again = velocity(ours, x_BCTHW, timestep_B, {**cond, "text": text_BLD, "text_mask": mask_BL})
    assert torch.equal(again, found) and found.dtype == torch.float32
    assert (found - wanted).abs().max() < 1e-5 * max(1.0, wanted.abs().max())


def test_a_batch_equals_its_samples():
    """Captions of different lengths in one batch: what pads them changes nothing."""
    model = randomised()
    x_BCTHW, timestep_B, cond = inputs(lengths=(3, 7, 1))
    whole = velocity(model, x_BCTHW, timestep_B, cond)
    for i in range(3):
        one = {name: value[i : i + 1] for name, value in cond.items()}
        alone = velocity(model, x_BCTHW[i : i + 1], timestep_B[i : i + 1], one)
        assert (whole[i] - alone[0]).abs().max() < 1e-5


def test_text_has_no_order_and_a_mask_may_have_holes():
    """No position goes into text tokens, so valid ones may be taken out of any mask."""
    model = randomised()
    x_BCTHW, timestep_B, cond = inputs(lengths=(5,))
    wanted = velocity(model, x_BCTHW, timestep_B, cond)
    text_BLD, mask_BL = torch.randn(1, 9, 24), torch.tensor([[0, 1, 1, 0, 1, 0, 0, 1, 1]])
    text_BLD[0, mask_BL[0].bool()] = cond["text"][0]
    found = velocity(model, x_BCTHW, timestep_B, {**cond, "text": text_BLD, "text_mask": mask_BL})
    assert torch.equal(found, wanted)


def test_no_text_mask_becomes_a_square(monkeypatch):
    """musubi-tuner's masked attention builds B x N x N booleans; here lengths go to the kernel, or nothing at all."""
    seen = []
    real = mmdit.attention

    def watched(q, k, v, *, key_lengths_B, backend):
        seen.append(None if key_lengths_B is None else key_lengths_B.tolist())
        return real(q, k, v, key_lengths_B=key_lengths_B, backend=backend)

    monkeypatch.setattr(mmdit, "attention", watched)
    model = randomised()
    x_BCTHW, timestep_B, cond = inputs(lengths=(3, 7))
    velocity(model, x_BCTHW, timestep_B, cond)
    assert seen == [[3, 7]] * 2 + [[18 + 3, 18 + 7]] * 5
    seen.clear()
    velocity(model, x_BCTHW, timestep_B, {**cond, "text": [torch.randn(4, 24)] * 2})
    assert seen == [None] * 7


def test_guidance_is_times_1000_in_training_as_in_generation():
    """musubi-tuner trains with the guidance as given (1.0) and generates with a thousand times that."""
    batch = {
        "llm": torch.randn(2, 6, 24),
        "llm_mask": torch.tensor([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]),
        "clipL": torch.randn(2, 12),
        "clipL_mask": torch.ones(2, 77),
        "latents": torch.randn(2, 4, 3, 4, 6),
    }
    cond = cond_from_batch(batch, guidance_scale=6.0)
    assert cond["guidance"].tolist() == [6000.0, 6000.0]
    assert torch.equal(cond["guidance"], embedded_guidance(6.0, count=2, device="cpu"))
    assert cond_from_batch(batch)["guidance"].tolist() == [1000.0, 1000.0]
    assert [len(sample) for sample in cond["text"]] == [2, 6] and torch.equal(cond["text"][0], batch["llm"][0, :2])
    assert set(cond) == {"text", "pooled", "guidance"}
    assert velocity(randomised(), batch["latents"], torch.tensor([3.0, 4.0]), cond).shape == batch["latents"].shape


def test_guidance_reaches_the_model_or_is_asked_for():
    model = randomised()
    x_BCTHW, timestep_B, cond = inputs()
    plain = velocity(model, x_BCTHW, timestep_B, cond)
    told = velocity(model, x_BCTHW, timestep_B, {**cond, "guidance": cond["guidance"] + 500})
    assert (plain - told).abs().max() > 1e-3
    with pytest.raises(ValueError, match="needs a value"):
        velocity(model, x_BCTHW, timestep_B, {**cond, "guidance": None})
    without = randomised(dataclasses.replace(TINY, has_guidance=False))
    one, other = (velocity(without, x_BCTHW, timestep_B, {**cond, "guidance": g}) for g in (None, cond["guidance"]))
    assert torch.equal(one, other)


def test_image_latents_come_after_the_noise():
    config = dataclasses.replace(TINY, in_dim=9)
    model = randomised(config)
    x_BCTHW, timestep_B, cond = inputs(config)
    found = velocity(model, x_BCTHW, timestep_B, cond)
    joined = torch.cat([x_BCTHW, cond.pop("concat")], dim=1)
    assert torch.equal(velocity(model, joined, timestep_B, cond), found) and found.shape == x_BCTHW.shape
    with pytest.raises(ValueError, match="4 channels for a model that takes 9"):
        velocity(model, x_BCTHW, timestep_B, cond)
    kept = first_frame_only(x_BCTHW)
    assert torch.equal(kept[:, :, 0], x_BCTHW[:, :, 0]) and not kept[:, :, 1:].any()


def test_an_empty_caption_is_an_error_not_a_nan():
    model = randomised()
    x_BCTHW, timestep_B, cond = inputs(lengths=(3, 0))
    with pytest.raises(ValueError, match="at least one"):
        velocity(model, x_BCTHW, timestep_B, cond)


def test_the_forward_pass_never_waits_for_the_device():
    """On the meta device any read of a value raises; so this also proves it for the full-size model."""
    full = HunyuanVideoConfig(
        dim=3072, ffn_dim=12288, refiner_ffn_dim=12288, text_dim=4096, pooled_dim=768, in_dim=32, out_dim=16,
        num_double_blocks=20, num_single_blocks=40, num_refiner_blocks=2, num_heads=24, head_dim=128, has_guidance=True,
    )  # fmt: skip
    x_BCTHW = torch.empty(2, 16, 33, 90, 160, device="meta")
    cond = {
        "text": [torch.empty(length, 4096, device="meta") for length in (90, 256)],
        "pooled": torch.empty(2, 768, device="meta"),
        "guidance": torch.empty(2, device="meta"),
        "concat": x_BCTHW,
    }
    out = velocity(build(full, dtype=torch.bfloat16), x_BCTHW, torch.empty(2, device="meta"), cond)
    assert out.shape == x_BCTHW.shape and out.dtype == torch.float32


def test_sixteen_bits_stay_near_thirty_two():
    """Embeddings, norms, sums and end in float32 keep a bf16 model within rounding of the same weights in fp32."""
    half = randomised().to(torch.bfloat16)
    full = randomised()
    full.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
    x_BCTHW, timestep_B, cond = inputs()
    seen = []
    hook = blocks(half)[0].register_forward_hook(lambda _m, given, out: seen.extend((given[2].dtype, out[0].dtype)))
    found, wanted = velocity(half, x_BCTHW, timestep_B, cond), velocity(full, x_BCTHW, timestep_B, cond)
    hook.remove()
    assert seen == [torch.float32, torch.bfloat16]
    assert found.dtype == torch.float32 and (found - wanted).norm() / wanted.norm() < 0.02


def test_a_table_first_made_while_sampling_serves_training():
    model = randomised()
    x_BCTHW, timestep_B, cond = inputs(frames=5)
    with torch.inference_mode():
        velocity(model, x_BCTHW, timestep_B, cond)
    x_BCTHW.requires_grad_()
    velocity(model, x_BCTHW, timestep_B, cond).sum().backward()
    assert x_BCTHW.grad.isfinite().all()


def test_blocks_are_one_list_in_the_order_in_which_they_run():
    model = randomised()
    order = []
    for number, block in enumerate(blocks(model)):
        block.register_forward_hook(lambda *_, number=number: order.append(number))
    velocity(model, *inputs())
    assert order == [0, 1, 2, 3, 4]
    assert [type(block).__name__ for block in blocks(model)] == ["MMDoubleStreamBlock"] * 2 + [
        "MMSingleStreamBlock"
    ] * 3
    assert not any(name.startswith("blocks") for name, _ in model.named_parameters())
