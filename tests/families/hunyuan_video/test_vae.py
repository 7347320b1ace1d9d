"""The family's VAE functions: two scales, and a draw of the posterior that comes out alike again."""

from __future__ import annotations

import pytest
import torch

from engine.contract.errors import WeightsError
from engine.families.hunyuan_video import options, tiny, vae
from engine.families.values import Clips
from engine.parts import hunyuan_vae, tiny_hunyuan_vae
from engine.parts.tiny_encoders import write_clip


@pytest.fixture(scope="module")
def coder(tmp_path_factory):
    path = tmp_path_factory.mktemp("vae") / tiny.VAE_NAME
    tiny_hunyuan_vae.write_vae(path, seed=1)
    return vae.load(path, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def clips():
    coarse = torch.rand(2, 3, 2, 3, 4, generator=torch.Generator().manual_seed(2)) * 2 - 1
    smooth = torch.nn.functional.interpolate(coarse, size=(5, 48, 64), mode="trilinear")
    return ((smooth + 1) * 127.5).round() / 127.5 - 1  # as pixels of files are


def cached(coder, clips, **settings):
    samples = vae.training_samples(coder, Clips(frames_BCFHW=clips), dtype=torch.float16, **settings)
    assert all(len(sample) == 1 for sample in samples)
    return [sample[0]["latents"] for sample in samples]


def test_a_cache_holds_a_draw_of_the_posterior_that_is_not_scaled(coder, clips):
    latents = cached(coder, clips)
    posterior = hunyuan_vae.encode(coder, clips)
    assert latents[0].dtype is torch.float16 and latents[0].shape == (16, 2, 6, 8)
    away = torch.stack(latents).float() - posterior.mean_BCTHW
    spread = (away / torch.exp(0.5 * posterior.logvar_BCTHW)).std()
    assert 0.9 < spread < 1.1
    assert not torch.equal(away[0], away[1]), "two clips got the same noise"


def test_caching_again_gives_the_same_draw_in_any_batch(coder, clips):
    """musubi-tuner draws anew each time, so that caching again trains on other numbers."""
    torch.manual_seed(1)
    once = cached(coder, clips)
    torch.manual_seed(2)
    again = cached(coder, clips)
    alone = cached(coder, clips[1:])[0]
    assert torch.equal(once[0], again[0]) and torch.equal(once[1], again[1])
    assert (alone.float() - once[1].float()).abs().max() < 4e-3  # half a step of float16
    assert hunyuan_vae.pixel_seed(clips[0]) == hunyuan_vae.pixel_seed(clips[0].half())
    assert hunyuan_vae.pixel_seed(clips[0]) != hunyuan_vae.pixel_seed(clips[1])


def test_training_multiplies_by_what_encode_multiplies_by(coder, clips):
    assert options.LATENT_SCALE == hunyuan_vae.SCALING_FACTOR == 0.476986
    mean = hunyuan_vae.encode(coder, clips).mean_BCTHW
    assert torch.allclose(vae.encode(coder, clips), options.LATENT_SCALE * mean, atol=1e-6)
    assert torch.equal(vae.encode(coder, clips), vae.encode(coder, clips))


def test_what_is_encoded_comes_back(coder, clips):
    latents = vae.encode(coder, clips)
    back = vae.decode(coder, latents)
    assert back.shape == clips.shape and (back - clips).abs().mean() < 0.2
    pieces = torch.cat(list(vae.decode_frames(coder, latents)), dim=2)
    assert torch.equal(pieces, back)


def test_tiles_change_what_is_cached_a_little(coder, clips):
    whole, tiled = cached(coder, clips)[0], cached(coder, clips, tile_pixels=32)[0]
    assert not torch.equal(whole, tiled) and (whole - tiled).abs().mean() < 0.5
    smaller = vae.decode(coder, vae.encode(coder, clips), tile_pixels=32)
    assert smaller.shape == clips.shape


def test_caches_are_float16_computed_in_float16_on_a_gpu():
    assert vae.CACHE_DTYPE is torch.float16 and vae.compute_dtype(torch.device("cuda")) is torch.float16


def test_another_file_is_named(tmp_path):
    write_clip(tmp_path / "clip.safetensors", seed=0)
    with pytest.raises(WeightsError, match="CLIP text encoder") as caught:
        vae.load(tmp_path / "clip.safetensors", device="cpu", dtype=None)
    assert "--text_encoder2" in caught.value.hint
