"""Tiles: put together without a gap, blended where they overlap, and no more of them than the clip needs."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from engine.parts.tiles import Tiling, fade_in, tiled_in_space, tiled_in_time


def enlarged(x, scale):
    """What a model would do that looks at nothing but one place: repeat each number `scale` times."""
    return x.repeat_interleave(scale, -1).repeat_interleave(scale, -2)


@pytest.mark.parametrize("height", [3, 4, 5, 8, 9, 10, 13])
@pytest.mark.parametrize("width", [4, 7, 12])
def test_space_tiles_of_a_local_function_give_the_whole(height, width):
    x = torch.rand(2, 3, 2, height, width)
    found = tiled_in_space(x, lambda part: enlarged(part, 8), Tiling(4, 3, Fraction(8)))
    assert torch.allclose(found, enlarged(x, 8), atol=1e-6)


def test_shrinking_tiles():
    x = torch.rand(1, 3, 1, 72, 64)
    found = tiled_in_space(x, lambda part: part[..., ::8, ::8].clone(), Tiling(32, 24, Fraction(1, 8)))
    assert torch.allclose(found, x[..., ::8, ::8], atol=1e-6)


@pytest.mark.parametrize("frames", [1, 4, 5, 6, 7, 8, 9, 13])
def test_time_tiles_of_a_local_function_give_the_whole(frames):
    """4n+1: latent frame n stands for four frames, the first for one."""
    x = torch.rand(1, 2, frames, 3, 3)

    def decode(part):
        return torch.cat([part[:, :, :1], part[:, :, 1:].repeat_interleave(4, 2)], dim=2)

    pieces = list(tiled_in_time(x, decode, Tiling(4, 3, Fraction(4))))
    assert torch.allclose(torch.cat(pieces, dim=2), decode(x), atol=1e-6)
    assert [piece.shape[2] for piece in pieces[:-1]] == [13] * min(1, len(pieces) - 1) + [12] * (len(pieces) - 2)


def test_time_tiles_are_lazy_and_none_is_wasted():
    """A last tile that would hold only the frame that is thrown away is not run."""
    seen = []

    def run(part):
        seen.append(part.shape[2])
        return part.clone()

    pieces = tiled_in_time(torch.rand(1, 1, 13, 2, 2), run, Tiling(4, 3, Fraction(1)))
    next(pieces)
    assert seen == [5]
    assert sum(piece.shape[2] for piece in pieces) == 9
    assert seen == [5, 5, 5, 4]


def test_the_later_tile_begins_with_weight_zero():
    tile, tail = torch.ones(1, 1, 1, 1, 6), torch.zeros(1, 1, 1, 1, 4)
    fade_in(tile, tail, axis=-1)
    assert tile.flatten().tolist() == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    fade_in(tile, tail[..., :0], axis=-1)
    assert tile.flatten().tolist() == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_seams_are_ramps():
    """Tiles that say 0, 1 and 1: the result climbs over the overlap, from the earlier tile's number on."""
    answers = iter([0.0, 1.0, 1.0])
    found = tiled_in_space(
        torch.zeros(1, 1, 1, 6, 15), lambda part: torch.full_like(part, next(answers)), Tiling(8, 6, Fraction(1))
    )
    assert found[0, 0, 0, 0].tolist() == [0, 0, 0, 0, 0, 0, 0, 0.5, 1, 1, 1, 1, 1, 1, 1]
