"""Golden check of the tiny autoencoders that previews are decoded with: pictures of madebyollin's own code."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

from engine.parts import tae
from engine.parts.weights import write_weights
from tests.golden.kit import Golden, Row, row, same


def decoded(weights: dict[str, torch.Tensor], latents_NTCHW: torch.Tensor, *, suffix: str) -> torch.Tensor:
    """The video NTCHW of a file with these weights, loaded as a person's file is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"taehv{suffix}"
        if suffix == ".pth":
            torch.save(weights, path)
        else:
            write_weights(path, weights)
        file = tae.check(path, latent_channels=latents_NTCHW.shape[2], wanted="taehv", role="--preview_vae")
        decoder = tae.load(file, dtype=torch.float32)
    return torch.stack(list(decoder.decode_frames(latents_NTCHW.transpose(1, 2))), dim=1)


def check_tiny_autoencoder(golden: Golden) -> Iterable[Row]:
    data, weights = golden.tensors, golden.weights
    latents = data["in.latents_NTCHW"]
    for suffix in (".safetensors", ".pth"):
        yield row(f"video of a {suffix}", decoded(weights, latents, suffix=suffix), data["out.video_NTCHW"])
    yield row("one frame", decoded(weights, data["in.one_NTCHW"], suffix=".pth"), data["out.one_NTCHW"])
    more = {**weights, "decoder.7.conv.weight": data["more.decoder.7.conv.weight"]}
    yield row("of more rows the last", decoded(more, latents, suffix=".pth"), data["out.video_NTCHW"])
    alone = {name: tensor for name, tensor in weights.items() if name.startswith("decoder.")}
    yield row("without an encoder", decoded(alone, latents, suffix=".pth"), data["out.video_NTCHW"])
    clamped = ((data["out.video_NTCHW"] == 0) | (data["out.video_NTCHW"] == 1)).float().mean().item()
    yield same("the reference's pixels are not all at an end of the range", clamped < 0.5, True)


CHECKS = {"taehv*": check_tiny_autoencoder}
