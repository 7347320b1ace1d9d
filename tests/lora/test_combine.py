"""Several LoRAs in one: exact when ranks add up, the nearest one when the rank is smaller."""

from __future__ import annotations

import pytest
import torch

from engine.contract.errors import WeightsError
from engine.lora.combine import concatenated, reduced
from engine.lora.weights import LohaWeights, LokrWeights, LoraWeights

OUT, IN = 12, 10


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


LORA = LoraWeights(draw(3, IN), draw(OUT, 3), 1.5)
OTHER = LoraWeights(draw(2, IN), draw(OUT, 2), 8.0)
LOHA = LohaWeights(draw(OUT, 2), draw(2, IN), draw(OUT, 2) + 1, draw(2, IN) - 1, 3.0)
LOKR = LokrWeights(draw(3, 2), None, 2.0, w2_a=draw(4, 1), w2_b=draw(1, 5))
WHOLE = LokrWeights(draw(3, 2), draw(4, 5), 2.0)


def test_ranks_side_by_side_are_the_sum() -> None:
    stack = [(LORA, 1.0), (OTHER, -0.5), (LOHA, 0.7), (LOKR, 1.0), (WHOLE, 2.0)]
    merged = concatenated(stack, where="a")
    wanted = sum(weights.change() * multiplier for weights, multiplier in stack)
    assert torch.allclose(merged.change(), wanted, atol=1e-4)
    assert merged.rank == 3 + 2 + 4 + 2 + 8 and merged.scale == 1.0


def test_a_smaller_rank_is_the_best_one() -> None:
    whole = concatenated([(LORA, 1.0), (OTHER, 1.0)], where="a")
    u, sizes, v = torch.linalg.svd(whole.change())
    for rank in (1, 3, 5):
        wanted = u[:, :rank] * sizes[:rank] @ v[:rank]
        assert torch.allclose(reduced(whole, rank=rank).change(), wanted, atol=1e-4)
    assert reduced(whole, rank=99).rank == 5
    assert torch.allclose(reduced(whole, rank=99).change(), whole.change(), atol=1e-4)


def test_energy_takes_as_few_ranks_as_hold_it() -> None:
    whole = concatenated([(LORA, 1.0), (OTHER, 1.0)], where="a")
    sizes = torch.linalg.svdvals(whole.change())
    shares = (sizes.square().cumsum(0) / sizes.square().sum()).tolist()
    for rank in range(1, 5):
        wanted = (shares[rank - 1] + (shares[rank - 2] if rank > 1 else 0)) / 2
        assert reduced(whole, energy=wanted).rank == rank
    assert reduced(whole, energy=1.0, rank=2).rank == 2
    assert reduced(LoraWeights(torch.zeros(4, 5), torch.zeros(6, 4), 4.0), energy=0.9).rank == 1


def test_convolutions_keep_their_shape() -> None:
    one = LoraWeights(draw(2, 4, 3, 3), draw(6, 2, 1, 1), 2.0)
    both = reduced(concatenated([(one, 1.0), (one, 1.0)], where="a"), rank=2)
    assert both.down.shape == (2, 4, 3, 3) and both.up.shape == (6, 2, 1, 1)
    assert torch.allclose(both.change(), 2 * one.change(), atol=1e-4)


def test_what_does_not_add_up_is_refused() -> None:
    with pytest.raises(WeightsError, match="DoRA"):
        concatenated([(LoraWeights(draw(3, IN), draw(OUT, 3), 1.5, dora=draw(OUT, 1)), 1.0)], where="a")
    with pytest.raises(WeightsError, match="different sizes"):
        concatenated([(LORA, 1.0), (LoraWeights(draw(3, IN), draw(OUT + 1, 3), 1.0), 1.0)], where="a")
