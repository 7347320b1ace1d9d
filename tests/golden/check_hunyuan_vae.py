"""Golden checks of HunyuanVideo's VAE: posterior, reconstruction, decoding; whole and in tiles.

The reference's weights go through a temporary checkpoint that is loaded the way a person's file is. What the file's
notes and configuration say of tiles (their sizes, and every how many numbers of a large result are stored) is read
from there.

The limit is 1e-5, and 1e-4 with tiles. Some of the reference's own decoded numbers are further than that from exact
arithmetic: with norm groups of two channels over a few pixels the decoder multiplies float32's rounding, and diffusers'
class, run here, differs from them just as much. So where our float32 decoder is more than 2.5e-6 away from itself in
float64, the limit for decoded frames is four times that distance, 1e-4 at the most.
"""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

from engine.parts import hunyuan_vae as vae
from engine.parts.weights import open_weights, write_weights
from tests.golden.kit import Golden, Row, row, same

LIMIT, TILED_LIMIT = 1e-5, 1e-4


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


def decoded(coder: vae.HunyuanVae, latents_BCTHW: torch.Tensor, tiles: vae.Tiles) -> tuple[torch.Tensor, float]:
    """Frames as the network gives them, and the limit that float32 allows for them."""
    frames = torch.cat(list(vae.decode_chunks(coder, latents_BCTHW, tiles=tiles)), dim=2)
    if tiles.frames or tiles.pixels:
        return frames, TILED_LIMIT
    exact = torch.cat(list(vae.decode_chunks(copy.deepcopy(coder).double(), latents_BCTHW, tiles=tiles)), dim=2)
    return frames, min(TILED_LIMIT, max(LIMIT, 4 * (frames - exact).abs().max().item()))


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
            frames, limit = decoded(coder, posterior.mean_BCTHW, tiles)
            yield row(f"{case} recon", frames, data[f"{case}.out.recon_from_mean"], limit)
        frames, limit = decoded(coder, data[f"{case}.in.latent"], tiles)
        yield row(f"{case} decoded", frames[:, :, ::step, ::step, ::step], data[f"{case}.out.decoded"], limit)
        clamped = vae.decode(coder, data[f"{case}.in.latent"], tiles=tiles)
        yield row(f"{case} decode() in -1..1", clamped, frames.clamp(-1, 1), LIMIT)


CHECKS = {"hunyuanvideo_vae*": check}
