"""A model with the shapes that matter for LoRA: blocks with Linear layers and convolutions, and parts outside them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"q": nn.Linear(WIDTH, WIDTH), "to_out": nn.ModuleList([nn.Linear(WIDTH, WIDTH)])})
        self.proj_mlp = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.norm_linear = nn.Linear(WIDTH, WIDTH)
        self.point = nn.Conv3d(WIDTH, WIDTH, 1)
        self.wide = nn.Conv3d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x_BLD: Tensor) -> Tensor:
        x_BLD = x_BLD + self.attn["to_out"][0](torch.tanh(self.attn["q"](x_BLD)))
        x_BLD = x_BLD + self.down(torch.relu(self.proj_mlp(x_BLD))) + 0.1 * self.norm_linear(x_BLD)
        x_BCLHW = x_BLD.transpose(1, 2)[..., None, None]
        x_BCLHW = self.wide(self.point(x_BCLHW))
        return x_BLD + x_BCLHW[..., 0, 0].transpose(1, 2)


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x_BLD: Tensor) -> Tensor:
        x_BLD = self.embed(x_BLD)
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return self.head(x_BLD)


def toy(seed: int = 0) -> Toy:
    """Always the same weights for a seed."""
    torch.manual_seed(seed)
    return Toy()


EXCLUDE = r".*(norm).*"
LINEARS = ["attn.q", "attn.to_out.0", "proj_mlp", "down", "point"]
