"""The Wan VAE: diffusers' numbers, every layout, chunks, and clear words for what it cannot take."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from engine.contract.errors import DataError, WeightsError
from engine.families.wan import tiny, vae
from engine.ops import norm_pad
from engine.parts import causal_conv
from engine.parts.weights import write_weights


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return tiny.vae_tensors(3)


@pytest.fixture(scope="module")
def coder(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("vae") / "Wan2.1_VAE.safetensors"
    write_weights(path, weights)
    return vae.load(path, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def clip():
    return torch.rand(1, 3, 9, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def diffusers_vae():
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    return AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 2, 4, 4], num_res_blocks=2).eval().requires_grad_(False)


def test_diffusers_weights_give_diffusers_numbers(diffusers_vae, clip, tmp_path):
    folder = tmp_path / "vae"
    diffusers_vae.save_pretrained(folder)
    ours = vae.load(folder, device="cpu", dtype=torch.float32)
    latents = vae.encode(ours, clip)
    theirs = diffusers_vae.encode(clip).latent_dist.mean
    assert (latents - theirs).abs().max() <= 1e-5
    decoded = diffusers_vae.decode(theirs).sample
    assert decoded.std() > 0.01
    assert (vae.decode(ours, theirs) - decoded).abs().max() <= 1e-5


def test_the_way_that_a_gpu_takes_is_the_same_in_its_formulas(coder, clip, monkeypatch):
    """Biases left to what reads the results, channels of zeros, upsamplers that convolve before doubling."""
    latents = vae.encode(coder, clip)
    decoded = vae.decode(coder, latents)
    laid = copy.deepcopy(coder)
    monkeypatch.setattr(causal_conv, "_MANY", 5)
    causal_conv.lay_channels_last(laid)
    causal_conv.fill_up_channels(laid)
    monkeypatch.setattr(norm_pad, "can_fuse", lambda x: True)
    torch.testing.assert_close(vae.encode(laid, clip), latents, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vae.decode(laid, latents), decoded, rtol=1e-4, atol=1e-5)
    grown = [layer for layer in laid.modules() if isinstance(layer, causal_conv.CausalConv3d)]
    assert any(layer.weight.shape[1] > layer.in_channels for layer in grown)


def test_pth_and_prefixed_files_load_alike(weights, coder, clip, tmp_path):
    torch.save(weights, tmp_path / "Wan2.1_VAE.pth")
    write_weights(tmp_path / "prefixed.safetensors", {f"model.{name}": value for name, value in weights.items()})
    wanted = vae.encode(coder, clip)
    for name in ("Wan2.1_VAE.pth", "prefixed.safetensors"):
        assert torch.equal(vae.encode(vae.load(tmp_path / name, device="cpu", dtype=torch.float32), clip), wanted)


def test_a_batch_gives_what_its_clips_give_alone(coder, clip):
    pair = torch.cat([clip, clip.flip(-1)])
    latents = vae.encode(coder, pair)
    for index in range(2):
        assert torch.allclose(latents[index : index + 1], vae.encode(coder, pair[index : index + 1]), atol=1e-5)
        alone = vae.decode(coder, latents[index : index + 1])
        assert torch.allclose(vae.decode(coder, latents)[index : index + 1], alone, atol=1e-5)


def test_a_longer_clip_does_not_change_the_beginning(coder, clip):
    """Causal: what comes later cannot be seen earlier."""
    assert torch.allclose(vae.encode(coder, clip)[:, :, :2], vae.encode(coder, clip[:, :, :5]), atol=1e-6)


def test_past_frames_on_the_cpu_change_nothing(coder, clip):
    wanted = vae.encode(coder, clip)
    try:
        coder.cache_on_cpu = True
        assert torch.equal(vae.encode(coder, clip), wanted)
    finally:
        coder.cache_on_cpu = False


def test_the_network_sees_one_chunk_at_a_time(coder, clip, monkeypatch):
    """Memory does not grow with the clip: 1, 4, 4, … frames in, one latent frame out, and decoding is lazy."""
    seen = []
    forward = vae.Coder.forward
    monkeypatch.setattr(
        vae.Coder, "forward", lambda self, x, memory: seen.append(x.shape[2]) or forward(self, x, memory)
    )
    latents = vae.encode(coder, clip)
    assert seen == [1, 4, 4]
    seen.clear()
    frames = vae.decode_frames(coder, latents)
    assert next(frames).shape[2] == 1 and seen == [1]
    assert [chunk.shape[2] for chunk in frames] == [4, 4]


def test_kept_frames_do_not_hold_the_chunk(coder, clip):
    from engine.parts.causal_conv import FrameMemory

    memory = FrameMemory()
    with torch.no_grad():
        coder.encoder(clip[:, :, :5], memory)
    assert all(kept.untyped_storage().nbytes() == kept.numel() * 4 for kept in memory._frames.values())


def test_frames_are_clamped_and_latents_deterministic(coder, clip):
    latents = vae.encode(coder, clip)
    assert latents.dtype == torch.float32 and torch.equal(latents, vae.encode(coder, clip))
    decoded = vae.decode(coder, latents * 50)
    assert decoded.shape == clip.shape and decoded.min() == -1 and decoded.max() == 1


def test_no_graph_is_kept_and_gradients_come_back(coder, clip):
    latents = vae.encode(coder, clip.clone().requires_grad_(True))
    assert not latents.requires_grad
    for _ in vae.decode_frames(coder, latents):
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(coder, weights, clip, tmp_path, dtype):
    write_weights(tmp_path / "vae.safetensors", weights)
    half = vae.load(tmp_path / "vae.safetensors", device="cpu", dtype=dtype)
    assert half.dtype == dtype
    wanted = vae.encode(coder, clip)
    found = vae.encode(half, clip)
    assert found.dtype == torch.float32
    assert (found - wanted).norm() / wanted.norm() < (0.1 if dtype == torch.bfloat16 else 0.02)


def test_tables_are_not_rounded_to_the_vae_dtype(weights, tmp_path):
    """musubi-tuner holds mean and deviation in bf16; ours stay as published."""
    write_weights(tmp_path / "vae.safetensors", weights)
    mean, inverse = vae.load(tmp_path / "vae.safetensors", device="cpu", dtype=torch.bfloat16).tables()
    assert mean.dtype == torch.float32 and torch.equal(mean.flatten(), torch.tensor(vae.LATENT_MEAN))
    assert torch.equal(inverse.flatten(), 1 / torch.tensor(vae.LATENT_STD))


def test_tables_of_the_file(weights, coder, clip, tmp_path):
    mean, std = [0.5] * 16, [2.0] * 16
    path = tmp_path / "vae.safetensors"
    write_weights(path, weights, metadata={"latents_mean": json.dumps(mean), "latents_std": json.dumps(std)})
    own = vae.encode(vae.load(path, device="cpu", dtype=torch.float32), clip)
    published, inverse = coder.tables()
    raw = vae.encode(coder, clip) / inverse + published
    assert torch.allclose(own, (raw - 0.5) / 2, atol=1e-5)
    write_weights(path, weights, metadata={"latents_mean": "[1, 2]"})
    with pytest.raises(WeightsError, match="latents_mean has 2 values for 16"):
        vae.load(path, device="cpu", dtype=None)


def test_without_a_published_table_latents_are_not_normalised(diffusers_vae, tmp_path):
    diffusers_vae.save_pretrained(tmp_path / "vae")
    four = vae.load(tmp_path / "vae", device="cpu", dtype=None)
    assert four.latent_mean == (0.0,) * 4 and four.latent_std == (1.0,) * 4


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


def test_latents_that_do_not_fit(coder):
    with pytest.raises(DataError, match="16, latent frames"):
        vae.decode(coder, torch.zeros(1, 4, 1, 2, 2))


def test_other_files_are_named(weights, tmp_path):
    path = tmp_path / "file.safetensors"
    write_weights(path, tiny.text_tensors(0, rows=64))
    with pytest.raises(WeightsError, match="UMT5"):
        vae.load(path, device="cpu", dtype=None)
    partial = {name: value for name, value in weights.items() if name != "decoder.upsamples.3.resample.1.weight"}
    write_weights(path, partial)
    with pytest.raises(WeightsError, match="decoder.upsamples.3"):
        vae.load(path, device="cpu", dtype=None)
