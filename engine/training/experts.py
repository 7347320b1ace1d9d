"""Experts split the noise levels and take turns in training: which one is next, and the levels it trains at.

One expert trains per optimizer step, since exchanging weights costs time. It is chosen by drawing a level as usual and
taking the expert whose range it falls into. Then a level within that range is drawn for every sample of the step, by
rejection, so that over the training each level comes up as often as `--timestep_sampling` says and no sample is lost.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..contract.errors import OptionError
from .sigmas import SigmaSampling, draw

ALL_LEVELS = (0.0, math.inf)
_ROUNDS = 1000
_LEAST_ROUND = 64


@dataclass(frozen=True, kw_only=True)
class TrainedExperts:
    """`starts`: the lowest sigma of each expert, ascending from 0; `names`: for the log; `use(number)` brings one
    in."""

    starts: Sequence[float]
    names: Sequence[str]
    use: Callable[[int], None]

    def bounds(self, number: int) -> tuple[float, float]:
        """Its range of sigmas: from the first value up to, but not including, the second."""
        return self.starts[number], [*self.starts, math.inf][number + 1]


def choose_expert(
    sampling: SigmaSampling, starts: Sequence[float], *, latent_size: tuple[int, int], generator: torch.Generator
) -> int:
    """The number of the expert to train: each as often as levels fall into its range. `latent_size` as for `draw`."""
    sigma_B, _ = draw(sampling, count=1, latent_size=latent_size, generator=generator)
    return bisect_right(starts, sigma_B.item()) - 1


def draw_within(
    sampling: SigmaSampling,
    bounds: tuple[float, float],
    *,
    count: int,
    latent_size: tuple[int, int],
    generator: torch.Generator,
    uniform_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `draw`, but only sigmas within `bounds`, upper end excluded: those outside are drawn again.

    `uniform_B`, the stratified uniforms of the batch, count in the first round only.
    """
    low, high = bounds
    sigma_B, timestep_B = draw(sampling, count=count, latent_size=latent_size, generator=generator, uniform_B=uniform_B)
    for _ in range(_ROUNDS):
        missing = torch.nonzero((sigma_B < low) | (sigma_B >= high)).flatten()
        if not len(missing):
            return sigma_B, timestep_B
        fresh_B, fresh_timestep_B = draw(
            sampling, count=max(len(missing), _LEAST_ROUND), latent_size=latent_size, generator=generator
        )
        good = torch.nonzero((fresh_B >= low) & (fresh_B < high)).flatten()[: len(missing)]
        sigma_B[missing[: len(good)]] = fresh_B[good]
        timestep_B[missing[: len(good)]] = fresh_timestep_B[good]
    raise OptionError(
        f"Hardly any noise level falls into {1000 * low:g}..{min(1000.0, 1000 * high):g}.",
        "Change --timestep_sampling, --discrete_flow_shift or --timestep_boundary.",
    )
