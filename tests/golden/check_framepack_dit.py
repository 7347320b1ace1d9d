"""FramePack's DiT against its own code: every case of framepack_tiny*, packed tokens, tables and blocks included.

And the conversion of HunyuanVideo LoRAs to FramePack against musubi-tuner's: names, shapes, and which rows of the
original each part gets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from engine.families.framepack.detect import FramePackConfig, detect
from engine.families.framepack.model import FramePackModel, blocks, build, velocity
from tests.golden.kit import Golden, Row, row, same

HISTORY = {"clean": "clean_latent", "clean_2x": "clean_latent_2x", "clean_4x": "clean_latent_4x"}
LATENTS = {"clean": "clean_latents", "clean_2x": "clean_latents_2x", "clean_4x": "clean_latents_4x"}


def model_of(golden: Golden) -> FramePackModel:
    """The reference's tiny model, detected from its shapes; the head size comes in as checkpoint metadata."""
    told = golden.info["config"]
    shapes = {name: tuple(tensor.shape) for name, tensor in golden.weights.items()}
    config = detect(shapes, {"head_dim": str(told["attention_head_dim"])}).config
    model = build(replace(config, rope_axes=tuple(told["rope_axes_dim"])), device="cpu")
    model.load_state_dict(golden.weights, strict=True)
    return model


def config_rows(golden: Golden, config: FramePackConfig) -> Iterable[Row]:
    """The sizes that we read from shapes, against the reference's own configuration."""
    told = golden.info["config"]
    sizes = {
        "in_dim": "in_channels",
        "out_dim": "out_channels",
        "num_heads": "num_attention_heads",
        "head_dim": "attention_head_dim",
        "num_layers": "num_layers",
        "num_single_layers": "num_single_layers",
        "num_refiner_layers": "num_refiner_layers",
        "text_dim": "text_embed_dim",
        "pooled_dim": "pooled_projection_dim",
        "has_guidance": "guidance_embeds",
        "rope_theta": "rope_theta",
    }
    for ours, theirs in sizes.items():
        yield same(f"config {ours}", getattr(config, ours), told[theirs])
    yield same("config ffn_dim", config.ffn_dim, int(config.dim * told["mlp_ratio"]))
    yield same("config image_dim", config.image_dim, told["image_proj_dim"] if told["has_image_proj"] else None)
    yield same("config patch_size", config.patch_size, (told["patch_size_t"], *[told["patch_size"]] * 2))


def check(golden: Golden) -> Iterable[Row]:
    model = model_of(golden)
    yield from config_rows(golden, model.config)
    for case in golden.info["cases"]:
        yield from case_rows(model, golden.tensors, case)


def conditioning(given: dict[str, torch.Tensor]) -> tuple[dict[str, Any], list[int]]:
    """(cond, valid text lengths) from the reference's inputs."""
    lengths = given["encoder_attention_mask"].sum(dim=1).tolist()
    cond: dict[str, Any] = {
        "text": [row[:length] for row, length in zip(given["encoder_hidden_states"], lengths, strict=True)],
        "pooled": given["pooled_projections"],
        "guidance": given["guidance"] / 1000.0,
    }
    if "image_embeddings" in given:
        cond["image"] = given["image_embeddings"]
    if "latent_indices" in given:
        cond["indices"] = given["latent_indices"].tolist()
    for name, theirs in HISTORY.items():
        if LATENTS[name] in given:
            cond[name] = given[LATENTS[name]]
            cond[f"{name}_indices"] = given[f"{theirs}_indices"].tolist()
    return cond, lengths


def case_rows(model: FramePackModel, tensors: dict[str, torch.Tensor], case: str) -> Iterable[Row]:
    given = {
        name.removeprefix(f"{case}.in."): value for name, value in tensors.items() if name.startswith(f"{case}.in.")
    }
    cond, lengths = conditioning(given)
    entered: list[tuple] = []
    found: list[Any] = []
    order = blocks(model)
    hooks = [order[0].register_forward_pre_hook(lambda _m, inputs: entered.append(inputs))]
    hooks += [block.register_forward_hook(lambda _m, _i, out: found.append(out)) for block in order]
    with torch.no_grad():
        out = velocity(model, given["hidden_states"], given["timestep"], cond)
    for hook in hooks:
        hook.remove()
    yield row(f"{case}.out", out, tensors[f"{case}.out"])
    image_BLD, _, _, cos_LD, sin_LD = entered[0][:5]
    count = image_BLD.shape[1]
    yield row(f"{case}.mid.packed_hidden_states", image_BLD, tensors[f"{case}.mid.packed_hidden_states"])
    table = torch.cat([part[..., :count, :].repeat_interleave(2, dim=-1) for part in (cos_LD, sin_LD)], dim=-1)
    yield row(f"{case}.mid.packed_rope", table.expand(len(out), -1, -1), tensors[f"{case}.mid.packed_rope"])
    images = cond["image"].shape[1] if "image" in cond else 0
    for name, theirs in tensors.items():
        label, _, rest = name.partition(".mid.")
        stage, _, part = rest.partition(".")
        if label != case or not part:
            continue
        number = int(stage.lstrip("doublesing"))
        if stage.startswith("double"):
            yield from stage_rows(name, found[number][part == "txt"], theirs, part, images, lengths)
        else:
            joint_BLD = found[model.config.num_layers + number]
            ours = joint_BLD[:, :count] if part == "img" else joint_BLD[:, count:]
            yield from stage_rows(name, ours, theirs, part, images, lengths)


def stage_rows(
    name: str, ours: torch.Tensor, theirs: torch.Tensor, part: str, images: int, lengths: list[int]
) -> Iterable[Row]:
    """A block's output; of text tokens only the valid ones, since padding means nothing."""
    if part == "img":
        yield row(name, ours, theirs)
        return
    for index, length in enumerate(lengths):
        yield row(f"{name} sample {index}", ours[index, : images + length], theirs[index, : images + length])


CHECKS = {"framepack_tiny*": check}
