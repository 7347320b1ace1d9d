"""Golden checks of Wan's VAE, text encoder and CLIP vision tower.

Each writes the reference's weights to a temporary checkpoint and loads it the way a person's file is loaded.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from engine.families.wan import clip, text, vae
from engine.families.wan.keys import text_name
from engine.parts.weights import load_into, open_weights, write_weights
from tests.golden.kit import Golden, Row, by_pytorchs_kernels, row, same


@contextmanager
def _checkpoint(golden: Golden, *, prefix: str = "", metadata: dict[str, str] | None = None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.safetensors"
        tensors = {prefix + name: value for name, value in golden.weights.items()}
        write_weights(path, tensors, metadata=metadata or {})
        yield path


@by_pytorchs_kernels
def check_vae(golden: Golden) -> Iterable[Row]:
    data = golden.tensors
    tables = {f"latents_{name}": json.dumps(data[f"in.{name}"].tolist()) for name in ("mean", "std")}
    with _checkpoint(golden, metadata=tables) as path:
        coder = vae.load(path, device="cpu", dtype=torch.float32)

    def decoded(latents_BCTHW: torch.Tensor) -> torch.Tensor:
        return torch.cat(list(vae.decode_chunks(coder, latents_BCTHW)), dim=2)

    for case in sorted(name.removesuffix(".in.video") for name in data if name.endswith(".in.video")):
        latents = vae.encode(coder, data[f"{case}.in.video"])
        yield row(f"{case} latent", latents, data[f"{case}.out.latent"])
        yield row(f"{case} recon", decoded(latents), data[f"{case}.out.recon"])
        yield row(f"{case} decoded", decoded(data[f"{case}.in.latent"]), data[f"{case}.out.decoded"])
        clamped = data[f"{case}.out.decoded"].clamp(-1, 1)
        yield row(f"{case} decode() in -1..1", vae.decode(coder, data[f"{case}.in.latent"]), clamped)


def check_text(golden: Golden) -> Iterable[Row]:
    data, config = golden.tensors, golden.info["config"]
    with _checkpoint(golden) as path:
        file = open_weights(path, role="--t5")
        model = text.build({text_name(name): shape for name, shape in file.shapes.items()})
        load_into(model, file, rename=text_name, device="cpu")
    found = (model.config.vocab_size, model.config.num_heads, model.config.num_layers, model.config.d_ff)
    yield same("sizes", found, tuple(config[key] for key in ("vocab", "num_heads", "num_layers", "dim_ffn")))
    ids_BL, mask_BL = data["in.ids"], data["in.mask"]
    with torch.no_grad():
        yield row("states", text.encode_ids(model, ids_BL, mask_BL), data["out"])
        for index, length in enumerate(mask_BL.sum(dim=1).tolist()):
            alone = text.encode_ids(model, ids_BL[index : index + 1, :length], mask_BL[index : index + 1, :length])
            yield row(f"caption {index} alone, unpadded", alone[0], data["out"][index, :length])
    reach = data["rel_bucket"].shape[0] // 2
    attention = model.encoder.block[0].layer[0].SelfAttention
    buckets = attention._relative_position_bucket(torch.arange(-reach, reach + 1))
    yield same("rel_bucket", buckets.tolist(), data["rel_bucket"].tolist())


def check_clip(golden: Golden) -> Iterable[Row]:
    data, config = golden.tensors, golden.info["config"]
    head_dim = str(config["dim"] // config["num_heads"])
    frames_BCHW = data["in.videos"].transpose(1, 2).flatten(0, 1)
    with _checkpoint(golden, prefix="visual.", metadata={"head_dim": head_dim}) as path:
        tower = clip.load(path, device="cpu", dtype=torch.float32)
        whole = clip.load(path, device="cpu", dtype=torch.float32, whole=True)
    yield same("image size", tower.image_size, config["image_size"])
    yield row("preprocessed", clip.preprocess(frames_BCHW, image_size=tower.image_size), data["mid.preprocessed"])
    yield row("features", clip.encode(tower, frames_BCHW), data["out.use_31_block"])
    yield row("all blocks", clip.encode(whole, frames_BCHW), data["out.all_blocks"])


CHECKS = {"wan_vae*": check_vae, "wan_t5*": check_text, "wan_clip*": check_clip}
