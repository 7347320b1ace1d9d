"""A small CLIP image encoder in Wan's own file layout: random weights, but the published image size and token count."""

from __future__ import annotations

import torch
from torch import Tensor

WIDTH, HEAD_DIM, LAYERS = 160, 80, 2
IMAGE_SIZE, PATCH = 224, 14
TOKENS = (IMAGE_SIZE // PATCH) ** 2 + 1


def clip_tensors(seed: int) -> dict[str, Tensor]:
    """The vision tower under Wan's names, float32, with a scrap of the text tower that readers must drop."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, fan_in: int) -> Tensor:
        return torch.randn(shape, generator=generator) * fan_in**-0.5

    tensors = {
        "log_scale": torch.tensor(1.0),
        "textual.token_embedding.weight": torch.zeros(4, 8),
        "visual.cls_embedding": normal(1, 1, WIDTH, fan_in=1),
        "visual.pos_embedding": normal(1, TOKENS, WIDTH, fan_in=16),
        "visual.patch_embedding.weight": normal(WIDTH, 3, PATCH, PATCH, fan_in=3 * PATCH),
        "visual.head": normal(WIDTH, 32, fan_in=WIDTH),
    }
    norms = ["visual.pre_norm", "visual.post_norm"]
    for number in range(LAYERS):
        layer = f"visual.transformer.{number}"
        norms += [f"{layer}.norm1", f"{layer}.norm2"]
        for name, rows in (("attn.to_qkv", 3 * WIDTH), ("attn.proj", WIDTH), ("mlp.0", WIDTH), ("mlp.2", WIDTH)):
            tensors[f"{layer}.{name}.weight"] = normal(rows, WIDTH, fan_in=WIDTH)
            tensors[f"{layer}.{name}.bias"] = torch.zeros(rows)
    for name in norms:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = torch.ones(WIDTH), torch.zeros(WIDTH)
    return tensors
