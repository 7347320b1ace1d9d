"""HunyuanVideo's VAE at full size with random weights on a GPU: numbers in 16 bits, slices, tiles, memory."""

from __future__ import annotations

import math

import pytest
import torch

from engine.parts import hunyuan_vae as vae
from engine.parts import hunyuan_vae_network as network
from engine.parts.causal_conv import lay_channels_last
from tests.layouts.checks import HERE, read_layout

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")]
WHOLE = vae.Tiles(frames=None, pixels=None)


@pytest.fixture(scope="module")
def coder():
    """The published network, float32, weights drawn so that activations keep about unit variance."""
    made = vae.build(vae.original_shapes(read_layout(HERE / "hunyuanvideo_vae_tencent.json.gz")), device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    for name, value in made.named_parameters():
        if value.ndim == 1:
            value.normal_(std=0.1, generator=generator)
            if "norm" in name and name.endswith("weight"):
                value.add_(1.0)
        else:
            value.normal_(std=math.prod(value.shape[1:]) ** -0.5, generator=generator)
    return made


@pytest.fixture(scope="module")
def half(coder):
    made = vae.build(vae.original_shapes(read_layout(HERE / "hunyuanvideo_vae_tencent.json.gz")), device="cuda").half()
    made.load_state_dict(coder.state_dict())
    return made


@pytest.fixture(scope="module")
def clip():
    return torch.rand(1, 3, 17, 128, 160, generator=torch.Generator().manual_seed(1)) * 2 - 1


def distance(found, wanted):
    return ((found.float() - wanted.float()).norm() / wanted.float().norm()).item()


def test_half_precision_is_close(coder, half, clip):
    wanted = vae.encode(coder, clip)
    assert distance(vae.encode(half, clip).mean_BCTHW, wanted.mean_BCTHW) < 0.02
    decoded = torch.cat(list(vae.decode_chunks(coder, wanted.mean_BCTHW)), dim=2)
    assert distance(torch.cat(list(vae.decode_chunks(half, wanted.mean_BCTHW)), dim=2), decoded) < 0.02


def test_slices_change_nothing(half, clip, monkeypatch):
    wanted = vae.encode(half, clip).mean_BCTHW
    decoded = torch.cat(list(vae.decode_chunks(half, wanted)), dim=2)
    monkeypatch.setattr(network, "SLICE_ELEMENTS", 1 << 22)
    assert distance(vae.encode(half, clip).mean_BCTHW, wanted) < 0.02
    assert distance(torch.cat(list(vae.decode_chunks(half, wanted)), dim=2), decoded) < 0.02


def test_fused_passes_change_nothing(coder, half, clip):
    """Channels last, norms in kernels, upsamplers computed from the clip before it is doubled."""
    fused = vae.build(vae.original_shapes(read_layout(HERE / "hunyuanvideo_vae_tencent.json.gz")), device="cuda").half()
    fused.load_state_dict(coder.state_dict())
    lay_channels_last(fused)
    exact = vae.encode(coder, clip).mean_BCTHW
    found, plain = (vae.encode(each, clip).mean_BCTHW for each in (fused, half))
    assert distance(found, exact) < 1.2 * distance(plain, exact)
    latents = exact
    exact, found, plain = (torch.cat(list(vae.decode_chunks(each, latents)), dim=2) for each in (coder, fused, half))
    assert distance(found, exact) < 1.2 * distance(plain, exact)


def test_memory_does_not_grow_with_the_clip(half):
    """Twice the frames, the same peak; all of it in the memory that a small card has."""
    peaks = []
    for latent_frames in (17, 33):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        for _ in vae.decode_frames(half, torch.zeros(1, 16, latent_frames, 34, 60)):
            pass
        peaks.append(torch.cuda.max_memory_allocated() / 2**30)
    assert peaks[1] < peaks[0] + 0.5
    assert peaks[1] < 8
