"""HunyuanVideo's VAE: diffusers' numbers, every layout, slices, tiles, and clear words for what it cannot take."""

from __future__ import annotations

import re

import pytest
import torch

from engine.contract.errors import DataError, WeightsError
from engine.ops import norm_pad
from engine.parts import hunyuan_vae as vae
from engine.parts import hunyuan_vae_network as network
from engine.parts import tiny_hunyuan_vae as tiny
from engine.parts.causal_conv import lay_channels_last
from engine.parts.hunyuan_vae_public import LATENT_CHANNELS
from engine.parts.weights import open_weights, write_weights
from tests.kernels import pytorchs_kernels

WHOLE = vae.Tiles(frames=None, pixels=None)


@pytest.fixture(scope="module")
def diffusers_vae():
    from diffusers import AutoencoderKLHunyuanVideo

    torch.manual_seed(0)
    return (
        AutoencoderKLHunyuanVideo(latent_channels=4, block_out_channels=(8, 8, 16, 16), norm_num_groups=2)
        .eval()
        .requires_grad_(False)
    )


def loaded(path, *, dtype=torch.float32):
    return vae.load(open_weights(path, role="--vae"), device="cpu", dtype=dtype)


@pytest.fixture(scope="module")
def weights(diffusers_vae):
    return {name: value.clone() for name, value in diffusers_vae.state_dict().items()}


@pytest.fixture(scope="module")
def coder(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("vae") / "hunyuan_video_vae.safetensors"
    write_weights(path, weights, metadata={"norm_num_groups": "2"})
    return loaded(path)


@pytest.fixture(scope="module")
def clip():
    return torch.rand(1, 3, 9, 24, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def latents():
    return torch.randn(1, 4, 3, 3, 2, generator=torch.Generator().manual_seed(2))


def ldm_names(weights):
    """The same weights as ComfyUI names them: levels, middle and attention called otherwise, the decoder reversed."""
    found = {}
    for name, value in weights.items():
        name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}", name)
        name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        name = name.replace("mid_block.attentions.0.group_norm", "mid.attn_1.norm")
        name = re.sub(r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1", name)
        name = name.replace("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out")
        found[name] = value[..., None, None, None] if ".attn_1." in name and value.ndim == 2 else value
    return found


@pytest.mark.parametrize("frames", [1, 5, 9])
@pytorchs_kernels()
def test_diffusers_weights_give_diffusers_numbers(diffusers_vae, coder, frames):
    clip = torch.rand(2, 3, frames, 16, 24, generator=torch.Generator().manual_seed(frames)) * 2 - 1
    theirs = diffusers_vae.encode(clip).latent_dist
    posterior = vae.encode(coder, clip)
    assert (posterior.mean_BCTHW - theirs.mean).abs().max() <= 1e-5
    assert (posterior.logvar_BCTHW - theirs.logvar).abs().max() <= 1e-5
    latents = torch.randn(theirs.mean.shape, generator=torch.Generator().manual_seed(3))
    decoded = diffusers_vae.decode(latents).sample
    assert decoded.std() > 0.1
    assert (vae.decode(coder, latents, tiles=WHOLE) - decoded.clamp(-1, 1)).abs().max() <= 1e-5


def test_diffusers_tiles(diffusers_vae, coder):
    """Diffusers' tiles with the same sizes; a tile is the same work there and here."""
    clip = torch.rand(1, 3, 25, 40, 56, generator=torch.Generator().manual_seed(4)) * 2 - 1
    diffusers_vae.enable_tiling(32, 32, 16, 24, 24, 12)
    diffusers_vae.use_framewise_encoding = diffusers_vae.use_framewise_decoding = True
    try:
        theirs = diffusers_vae.encode(clip).latent_dist.mean
        decoded = diffusers_vae.decode(theirs).sample
    finally:
        diffusers_vae.disable_tiling()
    tiles = vae.Tiles(frames=16, pixels=32)
    assert (vae.encode(coder, clip, tiles=tiles).mean_BCTHW - theirs).abs().max() <= 1e-4
    assert (vae.decode(coder, theirs, tiles=tiles) - decoded.clamp(-1, 1)).abs().max() <= 1e-4


@pytest.mark.parametrize("elements", [1, 3000])
def test_slices_change_nothing(coder, clip, latents, monkeypatch, elements):
    """Convolutions that get their input a few frames (or one) at a time; norms with statistics joined from slices."""
    wanted = vae.encode(coder, clip).mean_BCTHW
    decoded = torch.cat(list(vae.decode_chunks(coder, latents, tiles=WHOLE)), dim=2)
    seen = []
    convolve = network.CausalConv3d._convolve
    monkeypatch.setattr(
        network.CausalConv3d,
        "_convolve",
        lambda self, frames, start, end, bias: seen.append(end - start) or convolve(self, frames, start, end, bias),
    )
    monkeypatch.setattr(network, "SLICE_ELEMENTS", elements)
    assert (vae.encode(coder, clip).mean_BCTHW - wanted).abs().max() <= 1e-5
    sliced = torch.cat(list(vae.decode_chunks(coder, latents, tiles=WHOLE)), dim=2)
    assert (sliced - decoded).abs().max() <= 1e-5
    assert max(seen) == 1 if elements == 1 else 1 < max(seen) < 9


@pytest.mark.parametrize("elements", [1, 3000, network.SLICE_ELEMENTS])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_way_on_a_gpu_gives_the_same_numbers(coder, weights, clip, latents, tmp_path, monkeypatch, batch, elements):
    """Channels last, padded to eights, biases added later, upsamplers computed from the clip before it is doubled: in
    the formulas of what kernels do there."""
    write_weights(tmp_path / "vae.safetensors", weights, metadata={"norm_num_groups": "2"})
    clips, many = torch.cat([clip, -clip])[:batch], torch.cat([latents, -latents])[:batch]
    wanted, decoded = vae.encode(coder, clips).mean_BCTHW, torch.cat(list(vae.decode_chunks(coder, many)), dim=2)
    fused = loaded(tmp_path / "vae.safetensors")
    lay_channels_last(fused)
    seen = []
    padded = norm_pad.padded
    monkeypatch.setattr(norm_pad, "can_fuse", lambda x: True)
    monkeypatch.setattr(norm_pad, "padded", lambda *given, **named: seen.append(1) or padded(*given, **named))
    monkeypatch.setattr(network, "SLICE_ELEMENTS", elements)
    assert (vae.encode(fused, clips).mean_BCTHW - wanted).abs().max() <= 1e-5
    found = torch.cat(list(vae.decode_chunks(fused, many)), dim=2)
    assert found.shape == decoded.shape and (found - decoded).abs().max() <= 2e-5 * decoded.abs().max()
    assert len(seen) > 50


def test_norms_are_over_the_whole_clip(coder, clip):
    """So the beginning of a clip depends on its end, and temporal chunks could not be exact."""
    part = vae.encode(coder, clip[:, :, :5]).mean_BCTHW
    assert (vae.encode(coder, clip).mean_BCTHW[:, :, :2] - part).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["prefix", "ldm", "ldm prefix", "state_dict", "half"])
def test_every_layout_loads_alike(weights, coder, clip, tmp_path, kind):
    path = tmp_path / "vae.safetensors"
    tensors = ldm_names(weights) if "ldm" in kind else weights
    if "prefix" in kind:
        tensors = {f"vae.{name}": value for name, value in tensors.items()}
    if kind == "half":
        tensors = {name: value.half() for name, value in tensors.items()}
    if kind == "state_dict":
        path = tmp_path / "pytorch_model.pt"
        torch.save({"state_dict": {f"vae.{name}": value for name, value in weights.items()}}, path)
        found = vae.build(vae.original_shapes(open_weights(path, role="--vae").shapes), groups=2)
        assert {name: value.shape for name, value in found.state_dict().items()} == {
            name: value.shape for name, value in weights.items()
        }
        return
    write_weights(path, tensors, metadata={"norm_num_groups": "2"})
    found = vae.encode(loaded(path), clip).mean_BCTHW
    wanted = vae.encode(coder, clip).mean_BCTHW
    assert torch.equal(found, wanted) if kind != "half" else (found - wanted).abs().max() < 0.01


def test_a_file_without_metadata_has_32_groups(tmp_path):
    from diffusers import AutoencoderKLHunyuanVideo

    torch.manual_seed(0)
    theirs = AutoencoderKLHunyuanVideo(latent_channels=4, block_out_channels=(32, 32, 32, 64), layers_per_block=1)
    theirs.eval().save_pretrained(tmp_path / "vae")
    clip = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    with torch.no_grad():
        wanted = theirs.encode(clip).latent_dist.mean
    assert (vae.encode(loaded(tmp_path / "vae"), clip).mean_BCTHW - wanted).abs().max() <= 1e-5


def test_the_sample_is_reproducible_and_has_the_posteriors_moments():
    """Caches hold a sample, not the mean: its noise comes from a generator that the caller brings."""
    posterior = vae.Posterior(torch.full((1, 4, 5, 32, 32), 3.0), torch.full((1, 4, 5, 32, 32), -2.0))
    one, same, other = (posterior.sample(generator=torch.Generator().manual_seed(seed)) for seed in (7, 7, 8))
    assert one.dtype == torch.float32 and torch.equal(one, same) and not torch.equal(one, other)
    assert abs(one.mean() - 3.0) < 0.02 and abs(one.std() - torch.tensor(-1.0).exp()) < 0.01
    noise = torch.randn(1, 4, 5, 32, 32, generator=torch.Generator().manual_seed(7))
    assert torch.allclose(one, 3.0 + torch.exp(torch.tensor(-1.0)) * noise)


def test_long_clips_go_through_in_tiles(coder, monkeypatch):
    """Memory does not grow with the clip: 17 frames at once here, 65 by default, and decoding is lazy."""
    seen = []
    forward = network.Coder.forward
    monkeypatch.setattr(network.Coder, "forward", lambda self, x: seen.append(x.shape[2]) or forward(self, x))
    tiles = vae.Tiles(frames=16, pixels=None)
    mean = vae.encode(coder, torch.zeros(1, 3, 41, 8, 8), tiles=tiles).mean_BCTHW
    assert mean.shape[2] == 11 and seen == [17, 17, 17, 5]
    seen.clear()
    pieces = vae.decode_frames(coder, mean, tiles=tiles)
    assert next(pieces).shape[2] == 13 and seen == [5]
    assert [piece.shape[2] for piece in pieces] == [12, 12, 4]
    assert vae.ENCODE_TILES == vae.Tiles(frames=64, pixels=None)
    assert vae.DECODE_TILES == vae.Tiles(frames=64, pixels=256)


def test_frames_are_clamped_and_no_graph_is_kept(coder, clip, latents):
    posterior = vae.encode(coder, clip.clone().requires_grad_(True))
    assert not posterior.mean_BCTHW.requires_grad
    frames = vae.decode(coder, latents * 50)
    assert frames.shape == clip.shape and frames.min() >= -1 and frames.max() <= 1 and frames.dtype == torch.float32
    for _ in vae.decode_frames(coder, latents):
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(coder, weights, clip, tmp_path, monkeypatch, dtype):
    write_weights(tmp_path / "vae.safetensors", weights, metadata={"norm_num_groups": "2"})
    half = loaded(tmp_path / "vae.safetensors", dtype=dtype)
    wanted = vae.encode(coder, clip).mean_BCTHW
    for elements in (network.SLICE_ELEMENTS, 1):
        monkeypatch.setattr(network, "SLICE_ELEMENTS", elements)
        found = vae.encode(half, clip).mean_BCTHW
        assert found.dtype == torch.float32
        assert (found - wanted).norm() / wanted.norm() < (0.1 if dtype == torch.bfloat16 else 0.02)


def test_the_published_number_format():
    assert vae.compute_dtype(torch.device("cuda")) == torch.float16
    assert vae.compute_dtype(torch.device("cpu")) == torch.float32


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 3, 8, 16, 16), "4n\\+1 frames; this clip has 8"),
        ((1, 3, 5, 16, 20), "20x16"),
        ((1, 4, 5, 16, 16), "RGB clips"),
        ((3, 5, 16, 16), "RGB clips"),
    ],
)
def test_clips_that_do_not_fit(coder, shape, words):
    with pytest.raises(DataError, match=words):
        vae.encode(coder, torch.zeros(shape))


def test_latents_and_tiles_that_do_not_fit(coder):
    with pytest.raises(DataError, match="4, latent frames"):
        vae.decode(coder, torch.zeros(1, 16, 1, 2, 2))
    with pytest.raises(DataError, match="tiles of 100 pixels") as caught:
        vae.Tiles(pixels=100)
    assert "96" in caught.value.hint


def test_damaged_files(weights, tmp_path):
    path = tmp_path / "vae.safetensors"
    for absent in ("decoder.conv_in.conv.weight", "encoder.down_blocks.1.resnets.0.conv1.conv.weight"):
        partial = {name: value for name, value in weights.items() if name != absent}
        write_weights(path, partial, metadata={"norm_num_groups": "2"})
        with pytest.raises(WeightsError, match=re.escape(absent)):
            loaded(path)
    write_weights(path, {**weights, "decoder.extra.weight": torch.zeros(2)}, metadata={"norm_num_groups": "2"})
    with pytest.raises(WeightsError, match="decoder.extra.weight"):
        loaded(path)
    write_weights(path, weights)
    with pytest.raises(WeightsError, match="32 norm groups") as caught:
        loaded(path)
    assert "norm_num_groups" in caught.value.hint
    write_weights(path, weights, metadata={"norm_num_groups": "many"})
    with pytest.raises(WeightsError, match="'many'"):
        loaded(path)


def test_the_tiny_vae_keeps_a_picture(tmp_path):
    """Colours of a moving square come back, blurred; latents are about standard normal; the posterior is narrow."""
    path = tmp_path / "vae.safetensors"
    tiny.write_vae(path, seed=3)
    assert path.stat().st_size < 1e6
    coder = loaded(path)
    assert coder.latent_channels == LATENT_CHANNELS
    clip = torch.full((1, 3, 9, 64, 64), -0.4)
    for frame in range(9):
        clip[0, :, frame, 16:48, 8 + frame : 40 + frame] = torch.tensor([0.8, 0.1, -0.6]).view(3, 1, 1)
    latents = vae.encode(coder, clip).sample(generator=torch.Generator().manual_seed(0))
    assert 0.4 < (latents * vae.SCALING_FACTOR).std() < 2.5
    back = vae.decode(coder, latents)
    assert torch.nn.functional.mse_loss(back, clip) < 0.2 * clip.var()
    assert (back[0, :, 4, 32, 28] - torch.tensor([0.8, 0.1, -0.6])).abs().max() < 0.1
    assert all(torch.equal(a, b) for a, b in zip(*(tiny.vae_tensors(5).values() for _ in "ab"), strict=True))
