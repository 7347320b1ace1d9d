"""Models that share the noise levels and take turns in training: who is next, and levels that are its own.

One of them trains in an optimizer step, since exchanging their weights costs time. Who, is drawn: a level as any step
without experts would have it falls into somebody's range. Every sample of the step then gets a level of its own from
that range, drawn again and again until it lies inside, so that over the training each level comes as often as
`--timestep_sampling` says and no sample is left out.
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
    """`starts` are the lowest sigma of each, ascending from 0; `names` are for the log; `use(number)` brings one in."""

    starts: Sequence[float]
    names: Sequence[str]
    use: Callable[[int], None]

    def bounds(self, number: int) -> tuple[float, float]:
        """The levels of one: from the first, up to but without the second."""
        return self.starts[number], [*self.starts, math.inf][number + 1]


def choose_expert(
    sampling: SigmaSampling, starts: Sequence[float], *, latent_size: tuple[int, int], generator: torch.Generator
) -> int:
    """Whose turn it is: each as often as levels fall into its range. `latent_size` as for `draw`."""
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
    """As `draw`, but only sigmas within `bounds`, the second excluded: what falls outside is drawn anew.

    Stratified uniforms of the batch count for the first round only.
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
