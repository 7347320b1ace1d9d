"""The Wan VAE at full width with random weights on a GPU: the numbers of a CPU's plain operations."""

from __future__ import annotations

import math

import pytest
import torch

from engine.families.wan import bench, vae
from engine.parts.causal_conv import fill_up_channels, lay_channels_last

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")]


@pytest.fixture(scope="module")
def coder():
    """Float32 on the CPU, weights drawn so that activations keep about unit variance."""
    made = vae.build(bench.vae_shapes(), device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, value in made.named_parameters():
        if name.endswith("gamma"):
            value.fill_(1.0)
        elif value.ndim == 1:
            value.normal_(std=0.1, generator=generator)
        else:
            value.normal_(std=math.prod(value.shape[1:]) ** -0.5, generator=generator)
    return made


@pytest.fixture(scope="module")
def clip():
    return torch.rand(1, 3, 9, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def wanted(coder, clip):
    latents = vae.encode(coder, clip)
    return latents, torch.cat(list(vae.decode_chunks(coder, latents)), dim=2)


def distance(found, wanted):
    return ((found.cpu().float() - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize(("dtype", "at_most"), [(torch.float32, 2e-3), (torch.float16, 6e-3), (torch.bfloat16, 4e-2)])
def test_a_gpu_computes_what_a_cpu_does(coder, clip, wanted, dtype, at_most):
    """float32 may be multiplied in TF32 by cuDNN, whose numbers have ten bits."""
    made = vae.build(bench.vae_shapes(), device="cuda").to(dtype)
    made.load_state_dict(coder.state_dict())
    lay_channels_last(made)
    fill_up_channels(made)
    latents, frames = wanted
    assert distance(vae.encode(made, clip), latents) < at_most
    decoded = torch.cat(list(vae.decode_chunks(made, latents.to("cuda"))), dim=2)
    assert distance(decoded, frames) < at_most
