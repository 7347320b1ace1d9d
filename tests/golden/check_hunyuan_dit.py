"""HunyuanVideo DiT forward against Tencent's code: every case, block outputs included.

The reference keeps padded text tokens; ours takes valid ones only, so of text tokens the valid ones are compared.
What padded tokens become has no effect on the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from engine.families.hunyuan_video.detect import HunyuanVideoConfig, detect
from engine.families.hunyuan_video.model import HunyuanVideoModel, blocks, build, velocity
from tests.golden.kit import Golden, Row, row, same


def model_of(golden: Golden) -> HunyuanVideoModel:
    """The reference's tiny model, detected from its shapes; the head size comes in as checkpoint metadata."""
    told = golden.info["config"]
    shapes = {name: tuple(tensor.shape) for name, tensor in golden.weights.items()}
    config = detect(shapes, {"head_dim": str(told["hidden_size"] // told["heads_num"])}).config
    model = build(config, device="cpu")
    model.load_state_dict(golden.weights, strict=True)
    return model


def config_rows(golden: Golden, config: HunyuanVideoConfig) -> Iterable[Row]:
    """The sizes that we read from shapes, against the reference's own configuration."""
    told: dict[str, Any] = golden.info["config"]
    pairs = {
        "in_channels": config.in_dim,
        "out_channels": config.out_dim,
        "hidden_size": config.dim,
        "heads_num": config.num_heads,
        "mlp_width_ratio": config.ffn_dim / config.dim,
        "mm_double_blocks_depth": config.num_double_blocks,
        "mm_single_blocks_depth": config.num_single_blocks,
        "rope_dim_list": list(config.rope_axes),
        "guidance_embed": config.has_guidance,
        "patch_size": list(config.patch_size),
        "text_states_dim": config.text_dim,
        "text_states_dim_2": config.pooled_dim,
        "txt_refiner_depth": config.num_refiner_blocks,
        "timestep_freq_dim": config.freq_dim,
        "rope_theta": config.rope_theta,
    }
    for key, ours in pairs.items():
        yield same(f"config {key}", ours, told[key])


def check(golden: Golden) -> Iterable[Row]:
    model = model_of(golden)
    yield from config_rows(golden, model.config)
    for case in golden.info["cases"]:
        given = {name: golden.tensors.get(f"{case}.in.{name}") for name in ("text_states", "text_mask", "guidance")}
        cond = {
            "text": given["text_states"],
            "text_mask": given["text_mask"],
            "pooled": golden.tensors[f"{case}.in.text_states_2"],
            "guidance": given["guidance"],
        }
        out, found = run(model, golden.tensors[f"{case}.in.x"], golden.tensors[f"{case}.in.t"], cond)
        yield row(f"{case}.out", out, golden.tensors[f"{case}.out"])
        lengths = given["text_mask"].sum(dim=1).tolist()
        yield from inside_rows(golden, case, found, lengths, doubles=model.config.num_double_blocks)


def run(
    model: HunyuanVideoModel, x_BCTHW: torch.Tensor, timestep_B: torch.Tensor, cond: dict[str, Any]
) -> tuple[torch.Tensor, list[Any]]:
    """The velocity, and what the token refiner and each block gave on the way."""
    found: list[Any] = []
    watched = (model.txt_in, *blocks(model))
    hooks = [module.register_forward_hook(lambda _m, _i, out: found.append(out)) for module in watched]
    with torch.no_grad():
        out = velocity(model, x_BCTHW, timestep_B, cond)
    for hook in hooks:
        hook.remove()
    return out, found


def inside_rows(golden: Golden, case: str, found: list[Any], lengths: list[int], *, doubles: int) -> Iterable[Row]:
    """The refined text and what each block gave, valid tokens of each sample."""
    text, *after = found
    for index, length in enumerate(lengths):
        theirs = golden.tensors[f"{case}.mid.txt_in"][index, :length]
        yield row(f"{case}.mid.txt_in sample {index}", text[index, :length], theirs)
        for number, (image_BLD, text_BLD) in enumerate(after[:doubles]):
            name = f"{case}.mid.double{number}"
            yield row(f"{name}.img sample {index}", image_BLD[index], golden.tensors[f"{name}.img"][index])
            theirs = golden.tensors[f"{name}.txt"][index, :length]
            yield row(f"{name}.txt sample {index}", text_BLD[index, :length], theirs)
        image_tokens = after[0][0].shape[1]
        for number, x_BLD in enumerate(after[doubles:]):
            name, count = f"{case}.mid.single{number}", image_tokens + length
            yield row(f"{name} sample {index}", x_BLD[index, :count], golden.tensors[name][index, :count])


CHECKS = {"hunyuanvideo_tiny*": check, "hunyuanvideo_noguidance*": check}
