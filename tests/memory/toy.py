"""A small stack of frozen blocks with adapters, shaped like a transformer's: what the memory tests run on."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, 2, width))  # used by the block itself, not by a submodule
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width, bias=False)
        self.register_buffer("table", torch.linspace(0.5, 1.5, width))

    def forward(self, x: Tensor, time: Tensor, text: Tensor | None = None) -> Tensor:
        shift, scale = (self.modulation + time).chunk(2, dim=1)
        hidden = self.norm(x) * (1 + scale) + shift
        hidden = self.down(nn.functional.gelu(self.up(hidden * self.table)))
        return x + hidden if text is None else x + hidden * text.mean()


class Stack(nn.Module):
    """`count` blocks; `adapters` are low-rank pairs that wrap `up` and `down` and alone are trained."""

    def __init__(self, count: int = 5, width: int = 16, *, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.enter = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(count))
        self.requires_grad_(False)
        self.adapters = nn.ParameterList()

    def adapt(self, rank: int = 2) -> Stack:
        torch.manual_seed(99)
        for block in self.blocks:
            for linear in (block.up, block.down):
                spread = 0.3 * (16 / linear.in_features) ** 0.5  # wide layers must not blow up within a few steps
                self.adapters.append(nn.Parameter(torch.randn(rank, linear.in_features) * spread))
                self.adapters.append(nn.Parameter(torch.randn(linear.out_features, rank) * 0.3))
                _wrap(linear, *self.adapters[-2:])
        return self

    def forward(self, x: Tensor, time: Tensor, text: Tensor | None = None) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x, time, text=text)
        return x


def _wrap(linear: nn.Linear, down: nn.Parameter, up: nn.Parameter) -> None:
    base = linear.forward
    linear.forward = lambda x: base(x) + x @ down.to(x.dtype).t() @ up.to(x.dtype).t()


def inputs(width: int = 16, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = ((2, 7, width), (2, 2, width), (2, 3))
    x, time, text = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    return x, time, text


def train_steps(stack: Stack, values: tuple[Tensor, ...], *, steps: int = 2) -> list[Tensor]:
    """Output and adapter gradients of each of a few steps of plain gradient descent."""
    seen = []
    for _ in range(steps):
        out = stack(*values)
        assert out.isfinite().all(), "the toy itself diverged: nothing can be compared"
        seen.append(out.detach().clone())
        grads = torch.autograd.grad(out.float().square().mean(), list(stack.adapters))
        seen += [grad.clone() for grad in grads]
        with torch.no_grad():
            for parameter, grad in zip(stack.adapters, grads, strict=True):
                parameter -= 0.05 * grad
    return seen
