"""Several LoRAs into one: all ranks side by side, which is exact, or the best LoRA of a smaller rank.

Works on adapters that were read for one model. LoHa and LoKr become LoRAs first, exactly but of a larger rank.
The best smaller LoRA is the truncated singular value decomposition, computed from the two thin factors: the full matrix
is never built. Given up: DoRA, whose effect depends on the base weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..contract.errors import WeightsError
from .files import LoraFile
from .weights import AdapterWeights, LoraWeights

Weighted = Sequence[tuple[AdapterWeights, float]]


def modules_of(files: Sequence[tuple[LoraFile, float]]) -> dict[str, list[tuple[AdapterWeights, float]]]:
    """Module path -> what each file changes there, with its multiplier."""
    found: dict[str, list[tuple[AdapterWeights, float]]] = {}
    for file, multiplier in files:
        for path, weights in file.modules.items():
            found.setdefault(path, []).append((weights, multiplier))
    return found


def differences_of(files: Sequence[tuple[LoraFile, float]]) -> dict[str, Tensor]:
    """Full changes of single parameters, summed, each in the number format of the first file that has it."""
    found: dict[str, Tensor] = {}
    for file, multiplier in files:
        for name, value in file.differences.items():
            before = found[name].float() if name in found else 0.0
            found[name] = (before + value.float() * multiplier).to(found.get(name, value).dtype)
    return found


def concatenated(adapters: Weighted, *, where: str) -> LoraWeights:
    """One LoRA that equals the sum of all: ranks add up, alpha is the rank. `where`: how a WeightsError begins."""
    downs, ups = [], []
    for weights, multiplier in adapters:
        if weights.dora is not None:
            raise WeightsError(
                f"{where} is a DoRA, which cannot be added to others.", "Merge it into a model: --save_merged_model."
            )
        lora = weights.as_lora()
        if lora.mid is not None:
            raise WeightsError(f"{where} is a decomposed convolution, which cannot be joined with others.")
        downs.append(lora.down.float())
        ups.append(lora.up.float() * (lora.scale * multiplier))
    if len({(up.shape[0], down.shape[1:]) for up, down in zip(ups, downs, strict=True)}) > 1:
        raise WeightsError(f"{where} has different sizes in these LoRAs.", "They belong to different models.")
    down, up = torch.cat(downs), torch.cat(ups, dim=1)
    return LoraWeights(down, up, float(down.shape[0]))


def reduced(lora: LoraWeights, *, rank: int | None = None, energy: float | None = None) -> LoraWeights:
    """The LoRA of a smaller rank that is nearest in Frobenius norm; float32, alpha is the rank.

    `energy`, 0..1: as few ranks as hold this share of the squared norm, at least one and at most `rank`.
    """
    down, up = lora.down.flatten(1).float(), lora.up.flatten(1).float() * lora.scale
    left, left_small = torch.linalg.qr(up)
    right, right_small = torch.linalg.qr(down.T)
    u, sizes, v = torch.linalg.svd(left_small @ right_small.T)
    kept = len(sizes) if rank is None else min(rank, len(sizes))
    if energy is not None:
        squares = sizes.double().square()
        lost = squares.sum() - squares.cumsum(0)
        kept = min(kept, int((lost > (1 - energy) * squares.sum()).sum()) + 1)
    root = sizes[:kept].sqrt()
    new_up, new_down = left @ (u[:, :kept] * root), (root[:, None] * v[:kept]) @ right.T
    shape = (kept, *lora.down.shape[1:])
    return LoraWeights(new_down.reshape(shape), new_up.reshape(*new_up.shape, *lora.up.shape[2:]), float(kept))
