"""The FramePack DiT against diffusers' HunyuanVideoFramepackTransformer3DModel, and what the forward pass promises.

The original code's numbers are checked by tests/golden (check_framepack_dit).
"""

from __future__ import annotations

import pytest
import torch
from diffusers import HunyuanVideoFramepackTransformer3DModel
from torch.utils.checkpoint import checkpoint

from engine.data import cache
from engine.families.framepack.detect import detect
from engine.families.framepack.embedders import packed_table
from engine.families.framepack.model import blocks, build, cond_from_batch, load, velocity
from engine.families.framepack.sections import f1_layout, one_frame_layout, plain_layout
from engine.lora.network import create
from engine.memory.streaming import stream_blocks
from engine.parts.rope import framepack_table
from tests.families.framepack.tiny import HISTORY, TINY, WINDOW, inputs, one_of, randomised
from tests.layouts.checks import HERE, read_layout


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """diffusers' model with random weights, and ours loaded from the shards that diffusers saves."""
    torch.manual_seed(0)
    theirs = HunyuanVideoFramepackTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=128, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, mlp_ratio=1.5, text_embed_dim=24, pooled_projection_dim=12,
        has_image_proj=True, image_proj_dim=20, has_clean_x_embedder=True,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn(parameter.shape) / 32)
    folder = tmp_path_factory.mktemp("diffusers")
    theirs.save_pretrained(folder, max_shard_size="4MB")
    assert len(list(folder.glob("*-of-*.safetensors"))) > 1
    return theirs, load(folder, task=None, device="cpu")


@pytest.mark.parametrize(
    "layout", [plain_layout(2, window=WINDOW), plain_layout(0, window=WINDOW), f1_layout(window=WINDOW)]
)
@pytest.mark.parametrize("lengths", [(6,), (7, 4)])
def test_equals_diffusers(pair, layout, lengths):
    theirs, ours = pair
    x_BCTHW, timestep_B, cond = inputs(ours.config, layouts=[layout] * len(lengths), lengths=lengths)
    text_BLD = torch.nn.utils.rnn.pad_sequence(cond["text"], batch_first=True)
    mask_BL = torch.arange(text_BLD.shape[1]) < torch.tensor(lengths).unsqueeze(1)
    with torch.no_grad():
        wanted = theirs(
            x_BCTHW,
            timestep_B,
            text_BLD,
            mask_BL,
            cond["pooled"],
            cond["image"],
            torch.tensor(layout.target),
            torch.full((len(lengths),), 6000.0),
            cond["clean"],
            torch.tensor(layout.clean),
            cond["clean_2x"],
            torch.tensor(layout.clean_2x),
            cond["clean_4x"],
            torch.tensor(layout.clean_4x),
            return_dict=False,
        )[0]
        found = velocity(ours, x_BCTHW, timestep_B, cond)
    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() < 1e-5 * max(1.0, wanted.abs().max())


@pytest.mark.parametrize("lengths", [(7, 4, 1), (5, 5, 5)])
def test_a_batch_equals_its_samples(lengths):
    """musubi-tuner refuses a batch of captions of different lengths with PyTorch's attention."""
    model = randomised()
    layouts = [plain_layout(1, window=WINDOW), plain_layout(0, window=WINDOW), f1_layout(window=WINDOW)]
    x_BCTHW, timestep_B, cond = inputs(layouts=layouts, lengths=lengths)
    whole = velocity(model, x_BCTHW, timestep_B, cond)
    for i in range(len(lengths)):
        one = velocity(model, x_BCTHW[i : i + 1], timestep_B[i : i + 1], one_of(cond, i))
        assert (whole[i] - one[0]).abs().max() < 1e-5 * max(1.0, whole.abs().max())


def test_a_batch_has_the_gradients_of_its_samples():
    model = randomised()
    x_BCTHW, timestep_B, cond = inputs()
    x_BCTHW.requires_grad_()
    velocity(model, x_BCTHW, timestep_B, cond).square().sum().backward()
    one = x_BCTHW.detach()[1:].clone().requires_grad_()
    velocity(model, one, timestep_B[1:], one_of(cond, 1)).square().sum().backward()
    assert (x_BCTHW.grad[1] - one.grad[0]).abs().max() <= 1e-4 * one.grad.abs().max()


def test_the_forward_pass_never_waits_for_the_device():
    """On the meta device any read of a value raises; so this also proves it for the full-size model, at batch 2."""
    full = detect(read_layout(HERE / "framepack_i2v_hy.json.gz"), {}).config
    layouts = [plain_layout(3), plain_layout(0)]
    cond = {
        "text": [torch.empty(90, 4096, device="meta"), torch.empty(31, 4096, device="meta")],
        "pooled": torch.empty(2, 768, device="meta"),
        "image": torch.empty(2, 729, 1152, device="meta"),
        "guidance": 10.0,
        "indices": [layout.target for layout in layouts],
        "rope_scaling": (0.5, 800.0),
    }
    for name, frames in HISTORY.items():
        cond[name] = torch.empty(2, 16, frames, 60, 104, device="meta")
        cond[f"{name}_indices"] = [getattr(layout, name) for layout in layouts]
    x_BCTHW = torch.empty(2, 16, 9, 60, 104, device="meta")
    out = velocity(build(full, dtype=torch.bfloat16), x_BCTHW, torch.empty(2, device="meta"), cond)
    assert out.shape == x_BCTHW.shape and out.dtype == torch.float32


def test_parts_that_are_absent():
    """One frame without 2x and 4x; no history at all; places 0 … T-1 when none are told."""
    model = randomised()
    only = one_frame_layout(1, [0, 10], no_2x=True, no_4x=True, no_post=True)
    x_BCTHW, timestep_B, cond = inputs(layouts=[only], lengths=(3,))
    assert "clean_2x" not in cond and velocity(model, x_BCTHW, timestep_B, cond).shape == x_BCTHW.shape
    x_BCTHW, timestep_B, cond = inputs(lengths=(3,))
    bare = {name: cond[name] for name in ("text", "pooled", "image", "guidance")}
    told = velocity(model, x_BCTHW, timestep_B, {**bare, "indices": [[0, 1, 2]]})
    assert torch.equal(velocity(model, x_BCTHW, timestep_B, bare), told)
    assert not torch.equal(velocity(model, x_BCTHW, timestep_B, {**bare, "indices": [[4, 5, 6]]}), told)


def test_an_empty_caption_is_an_error_not_a_nan():
    x_BCTHW, timestep_B, cond = inputs(lengths=(3, 0))
    with pytest.raises(ValueError, match="at least one"):
        velocity(randomised(), x_BCTHW, timestep_B, cond)


@pytest.mark.parametrize("name", ["indices", "clean_indices", "clean_4x_indices"])
def test_places_that_do_not_fit_the_latents_are_an_error(name):
    x_BCTHW, timestep_B, cond = inputs()
    with pytest.raises(ValueError, match="places in time for"):
        velocity(randomised(), x_BCTHW, timestep_B, {**cond, name: [[*row, *range(90, 94)] for row in cond[name]]})


def test_guidance_is_given_as_people_write_it():
    """10 means 10, in training as in generation; the model gets it times 1000 and uses 10 when nothing is said."""
    model = randomised()
    x_BCTHW, timestep_B, cond = inputs()
    seen = []
    embedder = model.time_text_embed.guidance_embedder
    hook = embedder.linear_1.register_forward_pre_hook(lambda _m, given: seen.append(given[0]))
    found = [
        velocity(model, x_BCTHW, timestep_B, {**cond, "guidance": scale}) for scale in (10, torch.tensor([10.0, 10.0]))
    ]
    found.append(
        velocity(model, x_BCTHW, timestep_B, {name: value for name, value in cond.items() if name != "guidance"})
    )
    hook.remove()
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert abs(seen[0][0, 0].item() - torch.tensor(10000.0).cos().item()) < 1e-6


def test_rope_scaling_acts_on_late_timesteps_only():
    layout, size = plain_layout(1, window=WINDOW), {"height": 3, "width": 5, "axes": TINY.rope_axes, "theta": 256.0}
    places = [[layout.target], [layout.clean], None, [layout.clean_4x]]
    plain = packed_table(places, **size, timestep_B=torch.tensor([900.0]))
    both = packed_table(places, **size, timestep_B=torch.tensor([900.0, 100.0]), scaling=(0.5, 800.0))
    for part in range(2):
        assert torch.equal(both[part][1], plain[part])
        own = framepack_table(layout.target, **size, side_scale=0.5)[part]
        assert torch.equal(both[part][0, -len(own) :], own)
        old = framepack_table(layout.clean_4x, **size, pool=(4, 4, 4), side_scale=0.5)[part]
        assert torch.equal(both[part][0, : len(old)], old)
    wide = framepack_table([0], height=5, width=1, axes=TINY.rope_axes)[0]
    half = framepack_table([0], height=9, width=1, axes=TINY.rope_axes, side_scale=0.5)[0]
    assert torch.equal(half[::2], wide)


def test_rope_scaling_reaches_the_model():
    model = randomised()
    x_BCTHW, timestep_B, cond = inputs()  # timesteps 40.5 and 971.25
    plain = velocity(model, x_BCTHW, timestep_B, cond)
    scaled = velocity(model, x_BCTHW, timestep_B, {**cond, "rope_scaling": (0.5, 971.25)})
    assert (scaled[0] - plain[0]).abs().max() < 1e-5 < 1e-3 < (scaled[1] - plain[1]).abs().max()


def test_sixteen_bits_stay_near_thirty_two():
    """Norms, modulation sums, time and end in float32 keep a bf16 model within rounding of the same weights in fp32."""
    half, full = randomised().to(torch.bfloat16), randomised()
    full.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
    x_BCTHW, timestep_B, cond = inputs()
    seen = []
    hook = blocks(half)[0].register_forward_hook(lambda _m, given, out: seen.extend((given[2].dtype, out[0].dtype)))
    found, wanted = velocity(half, x_BCTHW, timestep_B, cond), velocity(full, x_BCTHW, timestep_B, cond)
    hook.remove()
    assert seen == [torch.float32, torch.bfloat16]
    assert found.dtype == torch.float32 and (found - wanted).norm() / wanted.norm() < 0.02


def test_blocks_are_one_list_and_names_stay():
    model = randomised()
    order = blocks(model)
    assert order is blocks(model) and isinstance(order, torch.nn.ModuleList)
    assert list(order) == [*model.transformer_blocks, *model.single_transformer_blocks]
    assert not any(name.startswith("_in_order") for name in model.state_dict())
    assert len(dict(model.named_modules())) == len(set(model.modules()))


def test_blocks_can_be_checkpointed_and_compiled_alone():
    """Blocks take plain tensors: no graph break for captions of one length, and the same gradient when recomputed."""
    model = randomised()
    x_BCTHW, timestep_B, cond = inputs(lengths=(5, 5))
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


def test_blocks_can_be_streamed():
    model = randomised()
    x_BCTHW, timestep_B, cond = inputs()
    wanted = velocity(model, x_BCTHW, timestep_B, cond)
    stream = stream_blocks(blocks(model), 3, device="cpu")
    assert stream.indices == [0, 2, 3]
    assert torch.equal(velocity(model, x_BCTHW, timestep_B, cond), wanted)


def test_lora_goes_on_both_kinds_of_blocks_and_trains():
    model = randomised()
    network = create(
        model, block_classes=("HunyuanVideoTransformerBlock", "HunyuanVideoSingleTransformerBlock"),
        exclude=r".*(norm).*", dim=2,
    )  # fmt: skip
    assert len(network.state()) == 3 * (12 * TINY.num_layers + 5 * TINY.num_single_layers)
    x_BCTHW, timestep_B, cond = inputs()
    velocity(model, x_BCTHW, timestep_B, cond).square().sum().backward()
    ups = [value.grad for name, value in network.named_parameters() if "lora_up" in name]
    silent = sum(grad is None or not grad.any() for grad in ups)
    assert silent == 0


def test_a_table_first_made_while_sampling_serves_training():
    model = randomised()
    x_BCTHW, timestep_B, cond = inputs(size=(8, 14))
    with torch.inference_mode():
        velocity(model, x_BCTHW, timestep_B, cond)
    x_BCTHW.requires_grad_()
    velocity(model, x_BCTHW, timestep_B, cond).sum().backward()
    assert x_BCTHW.grad.isfinite().all()


def cached(layout, *, with_history: bool) -> dict[str, torch.Tensor]:
    """One item's tensors under musubi-tuner's keys."""
    item = {
        "latents_1x6x10_float16": torch.randn(4, 1, 6, 10).half(),
        "latents_clean_1x6x10_float16": torch.randn(4, len(layout.clean), 6, 10).half(),
        "latent_indices_int64": torch.tensor(layout.target),
        "clean_latent_indices_int64": torch.tensor(layout.clean),
        "image_embeddings_float16": torch.randn(5, 20).half(),
        "llama_vec_float16": torch.randn(12, 24).half(),
        "llama_attention_mask": torch.arange(12) < 5,
        "clip_l_pooler_float16": torch.randn(12).half(),
    }
    for name in ("clean_2x", "clean_4x"):
        if getattr(layout, name):
            item[f"{name.replace('clean', 'clean_latent')}_indices_int64"] = torch.tensor(getattr(layout, name))
            if with_history:
                item[f"latents_{name}_1x6x10_float16"] = torch.randn(4, HISTORY[name], 6, 10).half()
    return item


def batch_of(*items: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {cache.plain_name(key): torch.stack([item[key] for item in items]) for key in items[0]}


def test_conditioning_from_cached_tensors():
    layouts = [plain_layout(1, window=1), plain_layout(0, window=1)]
    batch = batch_of(*(cached(layout, with_history=True) for layout in layouts))
    cond = cond_from_batch(batch, guidance_scale=6.0)
    assert [text.shape for text in cond["text"]] == [(5, 24), (5, 24)] and cond["guidance"] == 6.0
    assert cond["indices"] == [list(layout.target) for layout in layouts]
    for name in HISTORY:
        assert cond[name] is batch[f"latents_{name}"]
        assert cond[f"{name}_indices"] == [list(getattr(layout, name)) for layout in layouts]
    found = velocity(randomised(), batch["latents"].float(), torch.tensor([1.0, 500.0]), cond)
    assert found.shape == (2, 4, 1, 6, 10) and found.isfinite().all()
    assert cond_from_batch(batch)["guidance"] == 10.0


def test_one_frame_caches_stand_for_zeros():
    """2x and 4x places are cached without latents, which are zeros; without places there is nothing."""
    batch = batch_of(cached(one_frame_layout(9, [0], no_4x=True), with_history=False))
    cond = cond_from_batch(batch)
    assert cond["clean_2x"].shape == (1, 4, 2, 6, 10) and not cond["clean_2x"].any()
    assert cond["clean_2x_indices"] == [[11, 12]] and "clean_4x" not in cond
    assert velocity(randomised(), batch["latents"].float(), torch.tensor([500.0]), cond).isfinite().all()
