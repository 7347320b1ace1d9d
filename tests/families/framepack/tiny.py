"""A tiny FramePack DiT with random weights, and inputs for it."""

from __future__ import annotations

import torch

from engine.families.framepack.detect import FramePackConfig
from engine.families.framepack.model import build
from engine.families.framepack.sections import plain_layout

TINY = FramePackConfig(
    dim=64, ffn_dim=96, refiner_ffn_dim=80, in_dim=4, out_dim=4, text_dim=24, pooled_dim=12,
    num_layers=2, num_single_layers=2, num_refiner_layers=1, num_heads=2, head_dim=32, image_dim=20,
    rope_axes=(4, 14, 14),
)  # fmt: skip
WINDOW = 3
HISTORY = {"clean": 2, "clean_2x": 2, "clean_4x": 16}


def randomised(config: FramePackConfig = TINY, **options):
    torch.manual_seed(1)
    model = build(config, device="cpu", **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 8)
    return model


def inputs(config: FramePackConfig = TINY, *, layouts=None, size=(6, 10), lengths=(7, 4)):
    """(x, timestep, cond) with a layout for each sample; height and width that 2x and 4x patches do not divide."""
    torch.manual_seed(2)
    layouts = layouts or [plain_layout(1, window=WINDOW)] * len(lengths)
    batch = len(lengths)

    def noise(frames: int) -> torch.Tensor:
        return torch.randn(batch, config.in_dim, frames, *size)

    cond = {
        "text": [torch.randn(length, config.text_dim) for length in lengths],
        "pooled": torch.randn(batch, config.pooled_dim),
        "image": torch.randn(batch, 5, config.image_dim),
        "guidance": 6.0,
        "indices": [layout.target for layout in layouts],
    }
    for name, frames in HISTORY.items():
        if getattr(layouts[0], name):
            cond[name] = noise(frames)
            cond[f"{name}_indices"] = [getattr(layout, name) for layout in layouts]
    return noise(len(layouts[0].target)), torch.linspace(40.5, 971.25, batch), cond


def one_of(cond: dict, index: int) -> dict:
    kept = {name: value[index : index + 1] for name, value in cond.items() if isinstance(value, (list, torch.Tensor))}
    return {**cond, **kept}
