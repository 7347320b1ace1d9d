"""Layers that one layout keeps together and another apart: cutting an adapter by output rows, and joining several.

LoRA and LoHa stay of their kind when cut, LoRAs also when joined. What no kind can express (rows of a LoKr that end
inside a row of its first factor, stacked LoHas and LoKrs) becomes `Assembled`, which can still be merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..contract.errors import WeightsError
from .weights import AdapterWeights, Device, LoraWeights


@dataclass(frozen=True)
class Assembled:
    """Stacked rows of several adapters: each (adapter, first row, one past the last).

    None instead of an adapter: rows that do not change. It can be merged into a weight but has no file format.
    """

    pieces: tuple[tuple[AdapterWeights | None, int, int], ...]
    kind = "assembled"
    dora = None

    @property
    def _first(self) -> AdapterWeights:
        return next(weights for weights, _, _ in self.pieces if weights is not None)

    @property
    def rank(self) -> int:
        return self._first.rank

    @property
    def alpha(self) -> float:
        return self._first.alpha

    @property
    def scale(self) -> float:
        return self._first.scale

    @property
    def out_features(self) -> int:
        return sum(stop - start for _, start, stop in self.pieces)

    def change(self, device: Device = "cpu") -> Tensor:
        found = [None if one is None else one.change(device)[start:stop] for one, start, stop in self.pieces]
        like = next(piece for piece in found if piece is not None)
        sizes = [stop - start for _, start, stop in self.pieces]
        return torch.cat(
            [
                like.new_zeros(size, *like.shape[1:]) if piece is None else piece
                for piece, size in zip(found, sizes, strict=True)
            ]
        )

    def tensors(self) -> dict[str, Tensor]:
        kinds = sorted({weights.kind for weights, _, _ in self.pieces if weights is not None})
        raise WeightsError(
            f"A {' and '.join(kinds)} was cut or joined to fit this model's layers, which its format cannot express.",
            "Merge it into a model instead of converting it.",
        )

    def rows(self, start: int, stop: int) -> Assembled:
        return Assembled(((self, start, stop),))

    def as_lora(self) -> LoraWeights:
        """By a full singular value decomposition: slow for large layers."""
        up, sizes, down = torch.linalg.svd(self.change().flatten(1), full_matrices=False)
        return LoraWeights(down, up * sizes, float(len(sizes)))

    def squared_norm(self) -> float:
        return float(self.change().square().sum())


def cut(weights: AdapterWeights, start: int, stop: int) -> AdapterWeights:
    """The adapter of output features `start` to `stop` alone. WeightsError for a DoRA that cannot be cut there."""
    part = weights.rows(start, stop)
    if part is not None:
        return part
    if weights.dora is not None:
        raise WeightsError(
            f"A {weights.kind} with DoRA cannot be cut at row {start}.", "Merge it in the tool that trained it."
        )
    return Assembled(((weights, start, stop),))


def joined(parts: Sequence[tuple[AdapterWeights | None, int]]) -> AdapterWeights:
    """One adapter for a layer that stacks several. `parts`: (adapter, or None for no change; number of rows).

    LoRAs give a LoRA, exactly: of the same rank if they share one down half, else of the sum of their ranks.
    """
    present = [weights for weights, _ in parts if weights is not None]
    loras = [weights for weights in present if isinstance(weights, LoraWeights) and weights.mid is None]
    with_dora = sum(weights.dora is not None for weights in present)
    if with_dora and (with_dora < len(parts) or len(loras) < len(parts)):
        raise WeightsError("A DoRA of part of a layer cannot be joined: the lengths of the other rows are missing.")
    if len(loras) < len(present):
        return Assembled(tuple((weights, 0, rows) for weights, rows in parts))
    dora = torch.cat([lora.dora for lora in loras if lora.dora is not None]) if with_dora else None
    first = loras[0]
    if len(loras) == len(parts) and all(lora.alpha == first.alpha and _same(lora.down, first.down) for lora in loras):
        return LoraWeights(first.down, torch.cat([lora.up for lora in loras]), first.alpha, dora)
    even = len({lora.scale for lora in loras}) == 1
    rank = sum(lora.rank for lora in loras)
    up = first.up.new_zeros(sum(rows for _, rows in parts), rank)
    row, column = 0, 0
    for weights, height in parts:
        if isinstance(weights, LoraWeights):
            block = weights.up if even else (weights.up.float() * weights.scale).to(up.dtype)
            up[row : row + height, column : column + weights.rank] = block
            column += weights.rank
        row += height
    return LoraWeights(torch.cat([lora.down for lora in loras]), up, (first.scale if even else 1.0) * rank, dora)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
