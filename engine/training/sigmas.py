"""Which noise level each training sample gets, and how much its loss weighs.

Every `--timestep_sampling` mode and `--weighting_scheme` of musubi-tuner as small functions of explicit uniforms or
of an explicit generator. It knows no model and no batch. One difference on purpose: `--min_timestep` and
`--max_timestep` bound the timestep in every mode; musubi-tuner's `sigma` mode lets them bound an index that runs the
other way, so that 0..500 trained the noisy half.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..contract.errors import OptionError
from ..ops.sigmas import FLUX_LINE, Line, mu_on, shift_sigma

MODES = (
    "sigma",
    "uniform",
    "sigmoid",
    "shift",
    "flux_shift",
    "flux2_shift",
    "qwen_shift",
    "krea2_shift",
    "ideogram4_shift",
    "logsnr",
    "qinglong_flux",
    "qinglong_qwen",
)
WEIGHTED, DRAWN_BY_SIGMA = ("sigma_sqrt", "cosmap"), ("logit_normal", "mode")
WEIGHTINGS = ("none", *WEIGHTED, *DRAWN_BY_SIGMA)
_ROUNDS = 1000
_LEAST_ROUND = 64
_EDGE = 1e-7

# mode -> (line, whether tokens are counted in 2x2 latent patches)
_LINES: dict[str, tuple[Line, bool]] = {
    "flux_shift": (FLUX_LINE, True),
    "flux2_shift": (FLUX_LINE, False),
    "qwen_shift": (((256, 0.5), (8192, 0.9)), True),
    "krea2_shift": (((256, 0.5), (6400, 1.15)), True),
}
_QINGLONG_LOGSNR = (5.36, 1.0)


@dataclass(frozen=True, kw_only=True)
class SigmaSampling:
    """How noise levels are drawn; the fields are the options of the same names.

    `min_timestep` and `max_timestep` are 0..1000. `preserve_shape` draws again until inside instead of squeezing.
    """

    mode: str = "sigma"
    weighting_scheme: str = "none"
    discrete_flow_shift: float = 1.0
    sigmoid_scale: float = 1.0
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    min_timestep: float | None = None
    max_timestep: float | None = None
    preserve_shape: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise OptionError(f"--timestep_sampling {self.mode} is unknown.", f"Choose one of {', '.join(MODES)}.")
        if self.weighting_scheme not in WEIGHTINGS:
            raise OptionError(
                f"--weighting_scheme {self.weighting_scheme} is unknown.", f"Choose one of {', '.join(WEIGHTINGS)}."
            )
        low, high = self.window
        if not 0 <= low < high <= 1000:
            raise OptionError(
                f"--min_timestep {low:g} and --max_timestep {high:g} leave no noise level to train on.",
                "Both lie in 0..1000, and the first must be below the second.",
            )
        if self.discrete_flow_shift <= 0:
            raise OptionError(f"--discrete_flow_shift {self.discrete_flow_shift:g} must be greater than 0.")

    @property
    def window(self) -> tuple[float, float]:
        """Lowest and highest timestep, 0..1000."""
        low = 0.0 if self.min_timestep is None else float(self.min_timestep)
        return low, 1000.0 if self.max_timestep is None else float(self.max_timestep)


class _Draws:
    """Uniforms and normals for one batch: fresh from the generator, or made from uniforms that the batch brought."""

    def __init__(self, count: int, generator: torch.Generator, uniform_B: Tensor | None) -> None:
        self.count = count
        self.generator = generator
        self.uniform_B = uniform_B

    def decide(self) -> Tensor:
        """Uniforms that are always fresh, for choices that are not themselves a noise level."""
        return torch.rand(self.count, generator=self.generator)

    def uniform(self) -> Tensor:
        return self.decide() if self.uniform_B is None else self.uniform_B

    def normal(self, chosen_B: Tensor | None = None) -> Tensor:
        """Standard normals, for the samples in `chosen_B` (bool) or for all; given uniforms pass the inverse CDF."""
        if self.uniform_B is None:
            count = self.count if chosen_B is None else int(chosen_B.sum())
            return torch.randn(count, generator=self.generator)
        uniform_B = self.uniform_B if chosen_B is None else self.uniform_B[chosen_B]
        return math.sqrt(2.0) * torch.erfinv(2.0 * uniform_B.clamp(_EDGE, 1.0 - _EDGE) - 1.0)


def draw(
    sampling: SigmaSampling,
    *,
    count: int,
    latent_size: tuple[int, int],
    generator: torch.Generator,
    uniform_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw `count` noise levels: (sigma_B in 0..1, timestep_B), both float32 on the CPU.

    `latent_size` is (H, W) of the latents. `uniform_B` (0..1) are the stratified uniforms of `--num_timestep_buckets`
    when the batch brings them. The timestep is 1000 sigma + 1, and in mode `sigma` 1000 sigma, a whole number 1..1000.
    """
    if uniform_B is not None:
        uniform_B = uniform_B.detach().to(device="cpu", dtype=torch.float32)
    draws = _Draws(count, generator, uniform_B)
    if sampling.mode == "sigma":
        timestep_B = _table_timesteps(sampling, draws)
        return timestep_B / 1000.0, timestep_B
    low, high = (bound / 1000.0 for bound in sampling.window)
    if sampling.preserve_shape:
        sigma_B = _draw_inside(lambda some: _levels(sampling, some, latent_size), draws, low, high)
    else:
        sigma_B = _levels(sampling, draws, latent_size) * (high - low) + low
    return sigma_B, sigma_B * 1000.0 + 1.0


def loss_weight(weighting_scheme: str, timestep_B: Tensor) -> Tensor | None:
    """Weight of each sample's loss, shape B; None where every sample weighs the same.

    sigma is the nearest entry of the 1000-step table, so it is never 0. `sigma_sqrt` and `cosmap` are the weightings
    of Stable Diffusion 3 (arXiv 2403.03206, section 3.1); the other schemes act on the draw, not on the loss.
    """
    if weighting_scheme not in WEIGHTED:
        return None
    sigma_B = timestep_B.float().round().clamp(1, 1000) / 1000.0
    if weighting_scheme == "sigma_sqrt":
        return sigma_B**-2.0
    return 2.0 / (math.pi * (1.0 - 2.0 * sigma_B + 2.0 * sigma_B**2))


def resolution_shift(mode: str, latent_size: tuple[int, int]) -> float:
    """The shift e^mu of a `*_shift` mode for latents of (H, W); the number of frames plays no part."""
    line, packed = _LINES[mode]
    height, width = latent_size
    tokens = (height // 2) * (width // 2) if packed else height * width
    return math.exp(mu_on(line, tokens))


def _levels(sampling: SigmaSampling, draws: _Draws, latent_size: tuple[int, int]) -> Tensor:
    """Noise levels 0..1 of every mode but `sigma`, before the window is applied."""
    mode = sampling.mode
    if mode == "uniform":
        return draws.uniform()
    if mode == "sigmoid":
        return torch.sigmoid(sampling.sigmoid_scale * draws.normal())
    if mode == "ideogram4_shift":
        return _ideogram4(draws.uniform(), latent_size)
    if mode == "logsnr":
        return _from_logsnr(draws.normal(), sampling.logit_mean, sampling.logit_std)
    if mode in ("qinglong_flux", "qinglong_qwen"):
        return _qinglong(sampling, draws, latent_size)
    shift = sampling.discrete_flow_shift if mode == "shift" else resolution_shift(mode, latent_size)
    return shift_sigma(torch.sigmoid(sampling.sigmoid_scale * draws.normal()), shift)


def _from_logsnr(normal: Tensor, mean: float, std: float) -> Tensor:
    """Noise levels from a normal log signal-to-noise ratio (arXiv 2411.14793)."""
    return torch.sigmoid(-(mean + std * normal) / 2.0)


def _qinglong(sampling: SigmaSampling, draws: _Draws, latent_size: tuple[int, int]) -> Tensor:
    """A mixture, chosen for each sample: a resolution shift, `logsnr`, and a very clean `logsnr`."""
    flux = sampling.mode == "qinglong_flux"
    first, second = (0.79, 0.90) if flux else (0.95, 0.95)
    choice_B = draws.decide()
    shifted_B, clean_B = choice_B < first, choice_B >= second
    middle_B = ~(shifted_B | clean_B)
    shift = resolution_shift("flux_shift" if flux else "qwen_shift", latent_size)
    sigma_B = torch.zeros(draws.count)
    sigma_B[shifted_B] = shift_sigma(torch.sigmoid(sampling.sigmoid_scale * draws.normal(shifted_B)), shift)
    sigma_B[middle_B] = _from_logsnr(draws.normal(middle_B), sampling.logit_mean, sampling.logit_std)
    sigma_B[clean_B] = _from_logsnr(draws.normal(clean_B), *_QINGLONG_LOGSNR)
    return sigma_B


def _ideogram4(uniform_B: Tensor, latent_size: tuple[int, int]) -> Tensor:
    """Logit-normal levels whose mean grows with the number of pixels (16 px a latent patch), logSNR cut to -15..18."""
    height, width = latent_size
    mean = 0.5 * math.log(height * 16 * width * 16 / 512**2)
    normal_B = torch.special.ndtri(uniform_B.double().clamp(_EDGE, 1.0 - _EDGE))
    lowest, highest = 1.0 / (1.0 + math.exp(7.5)), 1.0 / (1.0 + math.exp(-9.0))
    return torch.sigmoid(mean + 1.5 * normal_B).clamp(lowest, highest).to(uniform_B.dtype)


def _draw_inside(levels: Callable[[_Draws], Tensor], draws: _Draws, low: float, high: float) -> Tensor:
    """Draw again until every level is inside; uniforms of the batch are used for the first round only."""
    if draws.uniform_B is not None:
        sigma_B = levels(draws)
        outside_B = (sigma_B < low) | (sigma_B > high)
        if bool(outside_B.any()):
            fresh = _Draws(int(outside_B.sum()), draws.generator, None)
            sigma_B[outside_B] = _draw_inside(levels, fresh, low, high)
        return sigma_B
    kept: list[Tensor] = []
    for _ in range(_ROUNDS):
        some = levels(_Draws(max(draws.count, _LEAST_ROUND), draws.generator, None))
        kept.append(some[(some >= low) & (some <= high)])
        if sum(len(part) for part in kept) >= draws.count:
            return torch.cat(kept)[: draws.count]
    raise OptionError(
        f"--preserve_distribution_shape: hardly any timestep falls into {low * 1000:g}..{high * 1000:g}.",
        "Widen --min_timestep and --max_timestep, or drop --preserve_distribution_shape.",
    )


def _table_timesteps(sampling: SigmaSampling, draws: _Draws) -> Tensor:
    """Mode `sigma`: whole timesteps 1..1000 from the density that the weighting scheme names."""
    low, high = sampling.window

    def timesteps(some: _Draws, low: float = 0.0, high: float = 1000.0) -> Tensor:
        index_B = (_density(sampling, some) * (high - low) + (1000.0 - high)).long().clamp(0, 999)
        return (1000 - index_B).float()

    if sampling.preserve_shape:
        return _draw_inside(timesteps, draws, max(low, 1.0), high)
    return timesteps(draws, low, high)


def _density(sampling: SigmaSampling, draws: _Draws) -> Tensor:
    """Place in the descending table as a fraction 0..1 (0 = all noise); arXiv 2403.03206, section 3.1."""
    if sampling.weighting_scheme == "logit_normal":
        return torch.sigmoid(sampling.logit_mean + sampling.logit_std * draws.normal())
    uniform_B = draws.uniform()
    if sampling.weighting_scheme == "mode":
        bend_B = torch.cos(math.pi * uniform_B / 2) ** 2 - 1 + uniform_B
        return 1 - uniform_B - sampling.mode_scale * bend_B
    return uniform_B


def histogram(
    sampling: SigmaSampling, *, latent_size: tuple[int, int] = (128, 128), bins: int = 40, draws: int = 100_000
) -> tuple[list[int], list[float]]:
    """What the options lead to, for `--show_timesteps`: (samples, mean loss weight) of each bin over 0..1000."""
    generator = torch.Generator().manual_seed(0)
    sigma_B, _ = draw(sampling, count=draws, latent_size=latent_size, generator=generator)
    counts = torch.histc(sigma_B * 1000.0, bins=bins, min=0.0, max=1000.0)
    every_B = torch.arange(1, 1001, dtype=torch.float32)
    weight_B = loss_weight(sampling.weighting_scheme, every_B)
    if weight_B is None:
        weight_B = torch.ones_like(every_B)
    bin_B = ((every_B - 1) * bins / 1000).long()
    weights = [float(weight_B[bin_B == number].mean()) for number in range(bins)]
    return [int(count) for count in counts], weights


def describe(sampling: SigmaSampling, *, latent_size: tuple[int, int] = (128, 128), width: int = 50) -> list[str]:
    """`--show_timesteps console`: lines of text that show the density of the timesteps and the loss weights."""
    counts, weights = histogram(sampling, latent_size=latent_size)
    step = 1000 // len(counts)
    lines = [f"Timesteps drawn by {sampling.mode} (100,000 draws), then the loss weight of each range:"]
    for title, values, shown in (("samples", counts, "{:8d}"), ("weight", weights, "{:8.2f}")):
        most = max(values) or 1
        lines.append(f"timestep   {title:>8}")
        for number, value in enumerate(values):
            bar = "#" * round(width * value / most)
            lines.append(f"{number * step:4d}-{(number + 1) * step:<5d}{shown.format(value)} {bar}".rstrip())
    return lines
