"""The loss on held-out clips, at fixed noise levels and with the same noise every time.

This makes the numbers comparable between steps, and between trainings of any seed, rank or distribution of noise
levels. The noise follows from a clip's name, the level and `--validation_seed`, and is drawn on the CPU, so it is the
same on every machine. Knows no files: clips are handed in, one per batch. Given up: larger batches, which would tie the
numbers to how clips are grouped.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..contract.events import Meter, Say
from .checkpoints import is_due
from .experts import TrainedExperts
from .group import Group
from .step import flow_step, to_device

if TYPE_CHECKING:
    from .setup import Setup


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What to validate on, and when.

    `clips(first, every)` yields (name, batch of one) for every `every`-th of the `count` clips, starting at `first`.
    `sigmas`: above 0, up to 1. `keep_best`: keep the LoRA with the lowest loss; `measure` is the same in validations
    whose losses compare.
    """

    clips: Callable[[int, int], Iterable[tuple[str, Mapping[str, Any]]]]
    count: int
    sigmas: Sequence[float]
    seed: int
    every_n_steps: int | None = None
    every_n_epochs: int | None = None
    keep_best: bool = False
    measure: str = ""

    def due_after_step(self, step: int) -> bool:
        return is_due(step, self.every_n_steps)

    def due_after_epoch(self, epoch: int) -> bool:
        """`epoch` counts from 1."""
        return is_due(epoch, self.every_n_epochs)


@torch.no_grad()
def validation_losses(setup: Setup, validation: Validation, group: Group, *, say: Say) -> dict[str, float]:
    """Mean losses over all clips: `loss/validation`, and such as `loss/validation_sigma_0.5` for each level.

    Each process takes its share of the clips; all return the same numbers, bit for bit those of a single process.
    Experts are brought in as the levels need them; the one of the highest level is left in place.
    """
    sigmas, device = sorted(validation.sigmas), setup.accelerator.device
    # one cell per clip and level, zero except in the process that has the clip: the sum over processes is exact
    losses, turns = torch.zeros(validation.count, len(sigmas), device=device), _turns(sigmas, setup.experts)
    mine = len(range(group.number, validation.count, group.count))
    meter = Meter(say, total=mine * len(turns), unit="clips", label="Validating")
    for expert, numbers in turns.items():
        if setup.experts is not None:
            setup.experts.use(expert)
        rounds = group.rounds(validation.count, setup.shared)
        for clip, (name, batch) in zip(rounds, validation.clips(group.number, group.count), strict=True):
            latents_BCTHW = setup.latent_scale * batch["latents"].to(device, torch.float32)
            cond = to_device(setup.conditioning(dict(batch)), device)
            for number in numbers:
                sigma_B = torch.full((latents_BCTHW.shape[0],), sigmas[number], device=device)
                with setup.accelerator.autocast():
                    losses[clip, number] = flow_step(
                        setup.velocity,
                        latents_BCTHW,
                        cond,
                        sigma_B=sigma_B,
                        timestep_B=1000.0 * sigma_B,
                        noise_BCTHW=_noise(latents_BCTHW, f"{validation.seed}/{name}/{sigmas[number]:g}"),
                    )
            meter.advance()
    meter.close()
    group.add_up([losses])
    means = losses.mean(0).tolist()
    each = {f"loss/validation_sigma_{sigma:g}": mean for sigma, mean in zip(sigmas, means, strict=True)}
    return {"loss/validation": sum(means) / len(means), **each}


def _turns(sigmas: Sequence[float], experts: TrainedExperts | None) -> dict[int, list[int]]:
    """For each expert, the numbers of the levels in its range."""
    turns: dict[int, list[int]] = {}
    for number, sigma in enumerate(sigmas):
        expert = 0 if experts is None else bisect_right(experts.starts, sigma) - 1
        turns.setdefault(expert, []).append(number)
    return turns


def _noise(like: Tensor, what: str) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(what.encode()).digest()[:8], "little") >> 1
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like.device)
