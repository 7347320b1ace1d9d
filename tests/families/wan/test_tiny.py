"""The small checkpoints: real files in the original layout, a VAE that keeps pictures, a DiT that a LoRA can teach."""

from __future__ import annotations

import time

import pytest
import torch
from torch.nn import functional

from engine.families.wan import keys, model, text, tiny, vae


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    start = time.perf_counter()
    paths = tiny.write_tiny_models(tmp_path_factory.mktemp("models"), seed=42)
    return paths, time.perf_counter() - start


def test_files_are_small_and_quickly_made(models):
    paths, seconds = models
    assert sum(path.stat().st_size for path in paths.values()) < 20e6
    assert seconds < 10
    assert not [path for path in paths["dit"].parent.rglob("*") if path.suffix == ".part"]


def test_every_file_loads_like_a_public_one(models):
    paths, _ = models
    dit = model.load(paths["dit"], task=tiny.TASK, device="cpu")
    assert dit.config == tiny.DIT_CONFIG
    assert vae.load(paths["vae"], device="cpu", dtype=None).latent_channels == dit.config.in_dim
    encoder = text.load_umt5(paths["t5"], device="cpu", dtype=torch.float32)
    assert encoder.tokenizer.source == str(paths["tokenizer"])
    states = text.states(encoder, ["a red circle"])[0]
    assert states.shape[1] == dit.config.text_dim and 0.5 < states.std() < 2


def test_options_name_the_files_that_were_written(models):
    paths, _ = models
    options = tiny.tiny_model_options(paths["dit"].parent)
    named = {value for verb in options.values() for key, value in verb.items() if key != "task"}
    assert named == {str(paths[key]) for key in ("dit", "vae", "t5")}


def test_the_same_seed_gives_the_same_weights():
    one, same, other = (tiny.dit_tensors(seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["blocks.0.ffn.0.weight"], other["blocks.0.ffn.0.weight"])
    assert tiny.train_tokenizer() == tiny.train_tokenizer()


def test_the_vae_keeps_a_picture(models):
    """Colours of a moving square come back, blurred; latents are about standard normal."""
    coder = vae.load(models[0]["vae"], device="cpu", dtype=torch.float32)
    clip = torch.full((1, 3, 9, 64, 64), -0.4)
    for frame in range(9):
        clip[0, :, frame, 16:48, 8 + frame : 40 + frame] = torch.tensor([0.8, 0.1, -0.6]).view(3, 1, 1)
    latents = vae.encode(coder, clip)
    assert 0.4 < latents.std() < 2.5
    back = vae.decode(coder, latents)
    assert functional.mse_loss(back, clip) < 0.2 * clip.var()
    centre = back[0, :, 4, 32, 28]
    assert (centre - torch.tensor([0.8, 0.1, -0.6])).abs().max() < 0.2


def losses(dit, latents, *, steps: int, learning_rate: float) -> list[float]:
    """Train adapters of rank 16 on one clip; uniform sigma, AdamW."""
    from engine.lora.network import create

    network = create(dit, block_classes=keys.LORA_BLOCKS, exclude=keys.LORA_EXCLUDE, dim=16, alpha=16, seed=1)
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate)
    generator = torch.Generator().manual_seed(2)
    words = [torch.randn(6, dit.config.text_dim, generator=generator)]
    found = []
    for _ in range(steps):
        noise, sigma = torch.randn(latents.shape, generator=generator), torch.rand(1, generator=generator)
        noisy = (1 - sigma) * latents + sigma * noise
        loss = functional.mse_loss(model.velocity(dit, noisy, sigma * 1000, {"text": words}), noise - latents)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def test_a_lora_learns_a_clip_and_nothing_happens_without_learning_rate(models):
    """By 40 % in 60 steps here; by 70 % in the 300 steps of a real job on a whole clip."""
    coder = vae.load(models[0]["vae"], device="cpu", dtype=torch.float32)
    latents = vae.encode(coder, torch.linspace(-1, 1, 64).expand(1, 3, 1, 64, 64).contiguous())
    dit = model.load(models[0]["dit"], task=tiny.TASK, device="cpu")
    still = losses(dit, latents, steps=60, learning_rate=0.0)
    dit = model.load(models[0]["dit"], task=tiny.TASK, device="cpu")
    learnt = losses(dit, latents, steps=60, learning_rate=3e-3)
    assert sum(still[-20:]) > 0.7 * sum(still[:20])
    assert sum(learnt[-20:]) < 0.6 * sum(still[-20:])
