"""Wan DiT forward against the official code: every case of wan_t2v*, wan_i2v*, wan_flf2v*, block outputs included.

The official batch pads samples of different sizes to one length; ours takes one size a call, so samples run one by
one and the real tokens are compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from engine.families.wan.detect import WanConfig, detect
from engine.families.wan.model import WanModel, blocks, build, velocity
from tests.golden.kit import Golden, Row, row, same


def model_of(golden: Golden) -> WanModel:
    """The reference's tiny model, detected from its shapes; the head size comes in as checkpoint metadata."""
    told = golden.info["config"]
    shapes = {name: tuple(tensor.shape) for name, tensor in golden.weights.items()}
    config = detect(shapes, {"head_dim": str(told["dim"] // told["num_heads"])}).config
    model = build(config, device="cpu")
    model.load_state_dict(golden.weights, strict=True)
    return model


def config_rows(golden: Golden, config: WanConfig) -> Iterable[Row]:
    """The sizes that we read from shapes, against the reference's own configuration."""
    told: dict[str, Any] = golden.info["config"]
    for key in (
        "dim",
        "ffn_dim",
        "freq_dim",
        "num_heads",
        "num_layers",
        "text_dim",
        "text_len",
        "out_dim",
        "in_dim",
        "eps",
    ):
        yield same(f"config {key}", getattr(config, key), told[key])
    yield same("config patch_size", list(config.patch_size), told["patch_size"])
    yield same("config image width", config.image_dim, told["img_emb_in_dim"])
    yield same("config two images", config.has_image_positions, told["model_type"] == "flf2v")


def check(golden: Golden) -> Iterable[Row]:
    model, tensors = model_of(golden), golden.tensors
    yield from config_rows(golden, model.config)
    for case, described in golden.info["cases"].items():
        for index in range(len(described["x"])):
            yield from sample_rows(model, tensors, case, index, batch=len(described["x"]))


def sample_rows(model: WanModel, tensors: dict, case: str, index: int, *, batch: int) -> Iterable[Row]:
    cond: dict[str, Any] = {"text": [tensors[f"{case}.in.context{index}"]]}
    if f"{case}.in.y{index}" in tensors:
        cond["y"] = tensors[f"{case}.in.y{index}"].unsqueeze(0)
    if f"{case}.in.clip_fea" in tensors:
        features = tensors[f"{case}.in.clip_fea"]
        images = len(features) // batch
        cond["clip"] = features[index * images : (index + 1) * images]
    found: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda _m, _i, out: found.append(out)) for block in blocks(model)]
    x_BCTHW = tensors[f"{case}.in.x{index}"].unsqueeze(0)
    with torch.no_grad():
        out = velocity(model, x_BCTHW, tensors[f"{case}.in.t"][index : index + 1], cond)
    for hook in hooks:
        hook.remove()
    yield row(f"{case}.out{index}", out[0], tensors[f"{case}.out{index}"])
    for number, tokens_BLD in enumerate(found):
        theirs = tensors[f"{case}.mid.block{number}"][index, : tokens_BLD.shape[1]]
        yield row(f"{case}.mid.block{number} sample {index}", tokens_BLD[0], theirs)


CHECKS = {"wan_t2v*": check, "wan_i2v*": check, "wan_flf2v*": check}
