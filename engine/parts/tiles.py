"""Process a video in overlapping tiles and blend them where they overlap, so that memory depends on the tile's size.

In space a tile begins every `stride` and is `size` wide; in time every tile also sees one more frame in front, because
a causal video VAE treats a clip's first frame differently, and the result for that frame is thrown away. Along an
overlap the earlier tile fades out and the later one fades in linearly, its first line having weight zero. This is
exactly the scheme of HunyuanVideo's own VAE, corners included: tiles are blended downwards, then to the right.

Sizes are in the unit of the input, `scale` is output per input (8 from latents to pixels, 1/8 the other way).
Knows nothing of models. Given up: ramps other than linear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Tiling:
    """Tiles of `size`, one every `stride`, along an axis of the input; the output is `scale` times as long."""

    size: int
    stride: int
    scale: Fraction

    @property
    def kept(self) -> int:
        """How much of each tile's output stays before the next tile takes over."""
        return int(self.stride * self.scale)

    def reversed(self) -> Tiling:
        """The same tiles for the opposite direction, from the output to the input."""
        return Tiling(int(self.size * self.scale), self.kept, 1 / self.scale)

    def needed(self, length: int) -> bool:
        return length > self.size


def fade_in(tile: Tensor, tail: Tensor, *, axis: int) -> None:
    """Blend the beginning of `tile` along `axis`, in place, with `tail`: the earlier tile's end at the same places."""
    length = tail.shape[axis]
    if not length:
        return
    ramp = torch.arange(length, device=tile.device, dtype=tile.dtype) / length
    shape = [1] * tile.ndim
    shape[axis] = length
    beginning = tile.narrow(axis, 0, length)
    beginning.copy_(torch.lerp(tail, beginning, ramp.view(shape)))


def tiled_in_space(x_BCFHW: Tensor, run: Run, tiling: Tiling) -> Tensor:
    """`run` on tiles of height and width, put together. Holds one tile, the overlaps of a row, and the result."""
    height, width = x_BCFHW.shape[-2:]
    above: dict[int, Tensor] = {}
    out: Tensor | None = None
    for top in range(0, height, tiling.stride):
        left: Tensor | None = None
        for start in range(0, width, tiling.stride):
            tile = run(x_BCFHW[..., top : top + tiling.size, start : start + tiling.size])
            if start in above:
                fade_in(tile, above[start], axis=-2)
            if left is not None:
                fade_in(tile, left, axis=-1)
            above[start] = tile[..., tiling.kept :, :].clone()
            left = tile[..., :, tiling.kept :].clone()
            if out is None:
                size = [int(length * tiling.scale) for length in (height, width)]
                out = tile.new_empty(*tile.shape[:3], *size)
            piece = tile[..., : tiling.kept, : tiling.kept]
            row, column = int(top * tiling.scale), int(start * tiling.scale)
            out[..., row : row + piece.shape[-2], column : column + piece.shape[-1]] = piece
    assert out is not None
    return out


def tiled_in_time(x_BCFHW: Tensor, run: Run, tiling: Tiling) -> Iterator[Tensor]:
    """`run` on tiles of frames (axis 2), lazily: yields the finished frames of each tile, in order.

    Holds one tile of input and output, and the overlap.
    """
    frames = x_BCFHW.shape[2]
    tail: Tensor | None = None
    for start in range(0, max(frames - 1, 1), tiling.stride):
        tile = run(x_BCFHW[:, :, start : start + tiling.size + 1])
        kept = tiling.kept
        if tail is None:
            kept += 1
        else:
            tile = tile[:, :, 1:]
            fade_in(tile, tail, axis=2)
        tail = tile[:, :, kept:].clone()
        yield tile[:, :, :kept]
