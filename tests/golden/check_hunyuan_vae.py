"""Golden checks of HunyuanVideo's VAE: posterior, reconstruction, decoding; whole and in tiles.

The reference's weights go through a temporary checkpoint that is loaded the way a person's file is. What the file's
notes and configuration say of tiles (their sizes, and every how many numbers of a large result are stored) is read
from there.

The limit is 1e-5, and 1e-4 with tiles and for the three rows in ROUNDED. There norm groups of two channels over a few
pixels multiply float32's rounding, and the reference's own numbers are as far from exact arithmetic as ours. Largest
differences when the reference's mean is decoded, "exact" being float64, in which diffusers' class and our network agree
to 1e-13 (diffusers 0.42.1, torch 2.13, one thread):

               reference-exact   ours-exact   ours-reference   diffusers-reference
    img recon      8.5e-6          1.0e-5         1.0e-5             1.0e-5
    t5 recon       4.9e-5          5.1e-5         2.2e-5             2.2e-5
    t9 recon       7.1e-6          1.0e-5         8.5e-6             5.9e-6

Norms or convolutions in float64, another attention kernel, another number of threads only throw these dice again
(img 0.9e-5 … 1.2e-5, t9 0.6e-5 … 1.1e-5); an exact decoder would still miss t5's by 4.9e-5.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

from engine.parts import hunyuan_vae as vae
from engine.parts.weights import open_weights, write_weights
from tests.golden.kit import Golden, Row, by_pytorchs_kernels, row, same

LIMIT, TILED_LIMIT, ROUNDED_LIMIT = 1e-5, 1e-4, 1e-4
ROUNDED = ("img recon", "t5 recon", "t9 recon")


def load(golden: Golden) -> vae.HunyuanVae:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vae.safetensors"
        write_weights(path, golden.weights, metadata={"norm_num_groups": str(golden.info["config"]["norm_num_groups"])})
        return vae.load(open_weights(path, role="--vae"), device="cpu", dtype=torch.float32)


def tiles_of(golden: Golden, case: str) -> tuple[vae.Tiles, int]:
    """The tile sizes of a case, and the step in which its decoded result is stored."""
    note = next((note for note in golden.info["notes"] if note.startswith(f"{case}.")), "")
    if not note:
        return vae.Tiles(frames=None, pixels=None), 1
    told = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)\b(?!\.)", note)}
    step = re.search(r"decoded is stored sub-sampled \[:, :, ::(\d+)", note)
    tiles = vae.Tiles(frames=told["tile_sample_min_tsize"], pixels=told["tile_sample_min_size"])
    return tiles, int(step[1]) if step else 1


def decoded(coder: vae.HunyuanVae, latents_BCTHW: torch.Tensor, tiles: vae.Tiles) -> torch.Tensor:
    """Frames as the network gives them, not limited to -1..1."""
    return torch.cat(list(vae.decode_chunks(coder, latents_BCTHW, tiles=tiles)), dim=2)


@by_pytorchs_kernels
def check(golden: Golden) -> Iterable[Row]:
    data, coder = golden.tensors, load(golden)
    yield same("latent channels", coder.latent_channels, golden.info["config"]["latent_channels"])
    yield same("scaling factor", vae.SCALING_FACTOR, golden.info["config"]["scaling_factor"])
    for case in sorted({name.partition(".in.")[0] for name in data if ".in." in name}):
        tiles, step = tiles_of(golden, case)
        limit = TILED_LIMIT if tiles.frames or tiles.pixels else LIMIT
        video = data.get(f"{case}.in.video", data.get(f"{case}.in.video_f16"))
        posterior = vae.encode(coder, video.float(), tiles=tiles)
        yield row(f"{case} mean", posterior.mean_BCTHW, data[f"{case}.out.mean"], limit)
        yield row(f"{case} logvar", posterior.logvar_BCTHW, data[f"{case}.out.logvar"], limit)
        if f"{case}.out.recon_from_mean" in data:
            frames, name = decoded(coder, data[f"{case}.out.mean"], tiles), f"{case} recon"
            allowed = ROUNDED_LIMIT if name in ROUNDED else limit
            yield row(name, frames, data[f"{case}.out.recon_from_mean"], allowed)
        frames = decoded(coder, data[f"{case}.in.latent"], tiles)
        yield row(f"{case} decoded", frames[:, :, ::step, ::step, ::step], data[f"{case}.out.decoded"], limit)
        clamped = vae.decode(coder, data[f"{case}.in.latent"], tiles=tiles)
        yield row(f"{case} decode() in -1..1", clamped, frames.clamp(-1, 1), LIMIT)


CHECKS = {"hunyuanvideo_vae*": check}
