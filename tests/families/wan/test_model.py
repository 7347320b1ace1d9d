"""The Wan DiT against diffusers' WanTransformer3DModel, and what the forward pass promises beside its numbers.

The official code's numbers are checked by tests/golden (check_wan_dit).
"""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file
from torch.utils.checkpoint import checkpoint

from engine.contract.errors import OptionError, WeightsError
from engine.families.wan.detect import WanConfig
from engine.families.wan.model import WanModel, blocks, build, cond_from_batch, load, velocity
from engine.parts.embeddings import Float32Linear, PatchConv3d, timestep_features
from engine.parts.rope import rotate, wan_table
from engine.parts.weights import write_weights

DIFFUSERS = {
    "t2v": {"in_channels": 16},
    "i2v": {"in_channels": 36, "image_dim": 40, "added_kv_proj_dim": 256},
    "flf2v": {"in_channels": 36, "image_dim": 40, "added_kv_proj_dim": 256, "pos_embed_seq_len": 514},
    "a14b": {"in_channels": 36},
}
TINY = WanConfig(
    dim=64, ffn_dim=96, freq_dim=32, text_dim=24, in_dim=4, out_dim=4, num_layers=2, num_heads=2, head_dim=32
)


def randomised(config: WanConfig, **options):
    torch.manual_seed(1)
    model = build(config, device="cpu", **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 8)
    return model


def inputs(config: WanConfig, *, frames: int = 3, height: int = 4, width: int = 6, batch: int = 2):
    torch.manual_seed(2)
    x_BCTHW = torch.randn(batch, config.in_dim, frames, height, width)
    timestep_B = torch.linspace(40.5, 971.25, batch)
    return x_BCTHW, timestep_B, {"text": [torch.randn(3 + 4 * i, config.text_dim) for i in range(batch)]}


@pytest.fixture(scope="module", params=DIFFUSERS)
def pair(request, tmp_path_factory):
    """diffusers' model with random weights, and ours loaded from the folder that diffusers saves."""
    torch.manual_seed(0)
    theirs = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=128,
        out_channels=16,
        text_dim=24,
        freq_dim=32,
        ffn_dim=96,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=1e-6,
        rope_max_seq_len=32,
        **DIFFUSERS[request.param],
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn(parameter.shape) / 16)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    return theirs, load(folder, task=None, device="cpu")


def test_equals_diffusers(pair):
    theirs, ours = pair
    config = ours.config
    x_BCTHW, timestep_B, cond = inputs(config)
    text_BLD = torch.stack([torch.nn.functional.pad(t, (0, 0, 0, 512 - len(t))) for t in cond["text"]])
    clip = torch.randn(2, config.image_tokens, config.image_dim) if config.image_tokens else None
    images = clip.view(4, 257, -1) if config.has_image_positions else clip
    with torch.no_grad():
        wanted = theirs(x_BCTHW, timestep_B, text_BLD, encoder_hidden_states_image=images, return_dict=False)[0]
        found = velocity(ours, x_BCTHW[:, :16], timestep_B, {**cond, "y": x_BCTHW[:, 16:], "clip": clip})
        again = velocity(ours, x_BCTHW, timestep_B, {**cond, "clip": images})
    assert torch.equal(again, found)
    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() < 1e-5 * max(1.0, wanted.abs().max())


def test_a_batch_equals_its_samples():
    model = randomised(TINY)
    x_BCTHW, timestep_B, cond = inputs(TINY)
    whole = velocity(model, x_BCTHW, timestep_B, cond)
    for i in range(2):
        one = velocity(model, x_BCTHW[i : i + 1], timestep_B[i : i + 1], {"text": cond["text"][i : i + 1]})
        assert (whole[i] - one[0]).abs().max() < 1e-5


def test_padding_is_zeros_and_is_attended(monkeypatch):
    """The model was trained with 512 text tokens: cutting the padding off changes the result. All of them are there, as
    on a GPU."""
    monkeypatch.setattr(WanModel, "_text_length", lambda self, longest, device: self.config.text_len)
    model = randomised(TINY)
    x_BCTHW, timestep_B, cond = inputs(TINY, batch=1)
    found = velocity(model, x_BCTHW, timestep_B, cond)
    by_hand = torch.cat([cond["text"][0], torch.zeros(512 - len(cond["text"][0]), TINY.text_dim)])
    assert torch.equal(velocity(model, x_BCTHW, timestep_B, {"text": [by_hand]}), found)
    with pytest.raises(ValueError, match="513 tokens"):
        velocity(model, x_BCTHW, timestep_B, {"text": [torch.zeros(513, TINY.text_dim)]})


def test_one_token_of_padding_stands_for_all(monkeypatch):
    """On a CPU; with the gradients of what learns from it: the padding counts as often as it is attended to."""
    model = randomised(TINY)
    x_BCTHW, timestep_B, cond = inputs(TINY)
    projections = [block.cross_attn.v.weight.requires_grad_() for block in model.blocks]
    found = []
    for length in (WanModel._text_length, lambda self, longest, device: self.config.text_len):
        monkeypatch.setattr(WanModel, "_text_length", length)
        out = velocity(model, x_BCTHW, timestep_B, cond)
        found.append([out, *torch.autograd.grad(out.square().mean(), projections)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_forward_pass_never_waits_for_the_device():
    """On the meta device any read of a value raises; so this also proves it for the full-size model."""
    full = WanConfig(
        dim=1536, ffn_dim=8960, freq_dim=256, text_dim=4096, in_dim=36, out_dim=16, num_layers=30, num_heads=12,
        head_dim=128, image_dim=1280, image_tokens=257,
    )  # fmt: skip
    x_BCTHW = torch.empty(1, 16, 21, 60, 104, device="meta")
    cond = {
        "text": [torch.empty(90, 4096, device="meta")],
        "y": torch.empty(1, 20, 21, 60, 104, device="meta"),
        "clip": torch.empty(1, 257, 1280, device="meta"),
    }
    out = velocity(build(full, dtype=torch.bfloat16), x_BCTHW, torch.empty(1, device="meta"), cond)
    assert out.shape == x_BCTHW.shape and out.dtype == torch.float32


def test_sixteen_bits_stay_near_thirty_two():
    """Norms, modulation, time and head in float32 keep a bf16 model within rounding of the same weights in fp32."""
    half = randomised(TINY).to(torch.bfloat16)
    full = randomised(TINY)
    full.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
    x_BCTHW, timestep_B, cond = inputs(TINY)
    seen = []
    hook = blocks(half)[0].register_forward_hook(lambda _m, given, out: seen.extend((given[1].dtype, out.dtype)))
    found, wanted = velocity(half, x_BCTHW, timestep_B, cond), velocity(full, x_BCTHW, timestep_B, cond)
    hook.remove()
    assert seen == [torch.float32, torch.bfloat16]
    assert found.dtype == torch.float32 and (found - wanted).norm() / wanted.norm() < 0.02


def test_an_outer_autocast_does_not_lower_time_and_head():
    layer, x = Float32Linear(8, 5), torch.randn(2, 8)
    wanted = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), wanted)
    layer, x = Float32Linear(8, 5).bfloat16(), torch.randn(2, 8)
    layer.rows_at_once = 2
    wanted = torch.nn.functional.linear(x, layer.weight.float(), layer.bias.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.float32 and (layer(x) - wanted).abs().max() < 1e-6


def test_patch_convolution_equals_torchs():
    layer = PatchConv3d(3, 7, patch_size=(1, 2, 2))
    x_BCTHW = torch.randn(2, 3, 4, 6, 8)
    assert (layer(x_BCTHW).movedim(-1, 1) - torch.nn.Conv3d.forward(layer, x_BCTHW)).abs().max() < 1e-6
    with pytest.raises(ValueError, match="do not divide"):
        layer(torch.randn(1, 3, 2, 5, 8))


def test_time_features_are_exact_near_1000():
    """In float32 the phase of timestep 999.5 is wrong in the fifth digit."""
    features = timestep_features(torch.tensor([999.5]), dim=256)[0]
    phase = 999.5 * 10000.0 ** (-3 / 128)
    assert abs(features[3].item() - torch.tensor(phase, dtype=torch.float64).cos().item()) < 1e-7


def test_reference_image_is_a_frame_before_the_video():
    """With ref_conv set to what patch_embedding does, a reference equals the same latent as first frame."""
    config = WanConfig(**{**TINY.__dict__, "reference_dim": 4})
    model = randomised(config)
    with torch.no_grad():
        model.ref_conv.weight.copy_(model.patch_embedding.weight[:, :, 0])
        model.ref_conv.bias.copy_(model.patch_embedding.bias)
    x_BCTHW, timestep_B, cond = inputs(config, frames=4)
    wanted = model(x_BCTHW, timestep_B, cond["text"])[:, :, 1:]
    found = velocity(model, x_BCTHW[:, :, 1:], timestep_B, {**cond, "reference": x_BCTHW[:, :, 0]})
    assert found.shape == wanted.shape and (found - wanted).abs().max() < 1e-5


def test_frame_indices_place_frames_in_time():
    model = randomised(TINY)
    x_BCTHW, timestep_B, cond = inputs(TINY)
    plain = velocity(model, x_BCTHW, timestep_B, cond)
    told = velocity(model, x_BCTHW, timestep_B, {**cond, "frame_indices": [[0, 1, 2], [0, 1, 2]]})
    assert torch.equal(told, plain)
    mixed = velocity(model, x_BCTHW, timestep_B, {**cond, "frame_indices": [[0, 1, 2], [0, 8, 20]]})
    assert (mixed[0] - plain[0]).abs().max() < 1e-5 < (mixed[1] - plain[1]).abs().max()
    alone = velocity(model, x_BCTHW[1:], timestep_B[1:], {"text": cond["text"][1:], "frame_indices": [[0, 8, 20]]})
    assert (mixed[1] - alone[0]).abs().max() < 1e-5
    with pytest.raises(ValueError, match="2 frame indices for 3 latent frames"):
        velocity(model, x_BCTHW, timestep_B, {**cond, "frame_indices": [[0, 1], [0, 1]]})


@pytest.mark.parametrize("compiled", [False, True])
def test_rotation_has_the_gradient_of_its_formula(compiled):
    turn = torch.compile(rotate, backend="aot_eager", fullgraph=True) if compiled else rotate
    cos, sin = wan_table((2, 2, 2), head_dim=12)
    x = torch.randn(2, 8, 3, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 8, 3, 12, dtype=torch.float64)
    (turn(x, cos, sin) * weight).sum().backward()
    found, x.grad = x.grad, None
    assert (turn(x, cos, sin) - rotate(x, cos, sin)).abs().max() < 1e-6
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.complex(cos, sin)[:, None]
    (torch.view_as_real(pairs).flatten(-2) * weight).sum().backward()
    assert (found - x.grad).abs().max() < 1e-6


def test_a_table_first_made_while_sampling_serves_training():
    model = randomised(TINY)
    x_BCTHW, timestep_B, cond = inputs(TINY, frames=5)
    with torch.inference_mode():
        velocity(model, x_BCTHW, timestep_B, cond)
    x_BCTHW.requires_grad_()
    velocity(model, x_BCTHW, timestep_B, cond).sum().backward()
    assert x_BCTHW.grad.isfinite().all()


def test_blocks_can_be_checkpointed_and_compiled_alone():
    """Blocks take plain tensors: no graph break, and the same gradient when recomputed."""
    model = randomised(TINY)
    x_BCTHW, timestep_B, cond = inputs(TINY)
    grads = []
    for wrapped in (False, True):
        if wrapped:
            for block in blocks(model):
                compiled = torch.compile(block.forward, backend="eager", fullgraph=True)
                block.forward = lambda *given, run=compiled: checkpoint(run, *given, use_reentrant=False)
        x = x_BCTHW.clone().requires_grad_()
        velocity(model, x, timestep_B, cond).square().sum().backward()
        grads.append(x.grad)
    assert (grads[0] - grads[1]).abs().max() <= 1e-5 * grads[0].abs().max()


def test_conditioning_from_cached_tensors():
    text = [torch.zeros(3, 4)]
    image, control = torch.randn(1, 20, 3, 4, 4), torch.randn(1, 16, 3, 4, 4)
    clip = torch.randn(1, 2, 257, 8)
    assert cond_from_batch({"t5": text, "latents": image}) == {"text": text}
    assert cond_from_batch({"t5": text, "latents_image": image})["y"] is image
    mixed = cond_from_batch({"t5": text, "latents_image": image, "latents_control": control})["y"]
    assert torch.equal(mixed[:, :16], control) and torch.equal(mixed[:, 16:, 0], image[:, 4:, 0])
    assert not mixed[:, 16:, 1:].any()
    alone = cond_from_batch({"t5": text, "latents_control": control})["y"]
    assert alone.shape[1] == 32 and not alone[:, 16:].any()
    assert cond_from_batch({"t5": text, "clip": clip})["clip"].shape == (1, 514, 8)


def test_cached_frame_indices_reach_the_model():
    """musubi-tuner writes f_indices into one-frame caches and then trains without them."""
    cond = cond_from_batch({"t5": [], "f_indices": torch.tensor([[0, 9]], dtype=torch.int32)})
    assert cond["frame_indices"] == [[0, 9]]


def saved(tmp_path, model, *, prefix="", metadata=None, dtype=torch.float32):
    path = tmp_path / "wan.safetensors"
    tensors = {prefix + name: value.to(dtype) for name, value in model.state_dict().items()}
    write_weights(path, tensors, metadata={"head_dim": "32"} if metadata is None else metadata)
    return path


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "transformer."])
def test_load_takes_prefixes_and_says_what_it_found(tmp_path, prefix):
    model = randomised(TINY)
    loaded = load(saved(tmp_path, model, prefix=prefix), task="t2v-1.3B", device="cpu")
    assert loaded.variant.name == "t2v" and loaded.config == TINY
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_load_keeps_the_files_type_and_reads_scaled_fp8(tmp_path):
    model = randomised(TINY)
    assert load(saved(tmp_path, model, dtype=torch.float16), task=None, device="cpu").dtype == torch.float16
    content = {}
    for name, value in model.state_dict().items():
        content[name] = value
        if "blocks" in name and value.ndim == 2:
            scale = value.abs().amax() / 448
            content[name] = (value / scale).to(torch.float8_e4m3fn)
            content[name.replace(".weight", ".scale_weight")] = scale
    save_file(content, tmp_path / "fp8.safetensors", metadata={"head_dim": "32"})
    loaded = load(tmp_path / "fp8.safetensors", task=None, device="cpu", dtype=torch.float32)
    x_BCTHW, timestep_B, cond = inputs(TINY)
    wanted = velocity(model, x_BCTHW, timestep_B, cond)
    assert (velocity(loaded, x_BCTHW, timestep_B, cond) - wanted).norm() / wanted.norm() < 0.1
    assert load(tmp_path / "fp8.safetensors", task=None, device="cpu").dtype == torch.bfloat16


def test_load_refuses_in_one_line(tmp_path):
    model = randomised(TINY)
    path = saved(tmp_path, model)
    with pytest.raises(
        WeightsError, match=r"takes 4 input channels \(text-to-video\) but the job says i2v-14B"
    ) as caught:
        load(path, task="i2v-14B", device="cpu")
    assert caught.value.hint.startswith("Choose --task t2v-1.3B or ")
    with pytest.raises(WeightsError, match="does not divide into heads of 128"):
        load(saved(tmp_path, model, metadata={}), task=None, device="cpu")
    state = model.state_dict()
    state.pop("blocks.1.ffn.2.bias")
    write_weights(path, state, metadata={"head_dim": "32"})
    with pytest.raises(WeightsError, match=r"1 missing \(blocks.1.ffn.2.bias\)"):
        load(path, task=None, device="cpu")
    with pytest.raises(OptionError, match="no attention backend"):
        build(TINY, attention_backend="fast")
