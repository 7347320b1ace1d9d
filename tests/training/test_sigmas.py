"""Noise levels: windows, stratified uniforms, weights. The numbers themselves are golden (tests/golden)."""

from __future__ import annotations

import math

import pytest
import torch

from engine.contract.errors import OptionError
from engine.training.sigmas import MODES, SigmaSampling, describe, draw, histogram, loss_weight, resolution_shift

SIZE = (60, 104)


def levels(count: int = 4000, seed: int = 0, uniform_B=None, **values):
    generator = torch.Generator().manual_seed(seed)
    return draw(SigmaSampling(**values), count=count, latent_size=SIZE, generator=generator, uniform_B=uniform_B)


@pytest.mark.parametrize("preserve", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_min_and_max_bound_the_timestep_in_every_mode(mode: str, preserve: bool) -> None:
    """In the reference, sigma mode with 100..500 trains 501..900, and preserving the shape does nothing there."""
    sigma_B, timestep_B = levels(mode=mode, min_timestep=100, max_timestep=500, preserve_shape=preserve)
    assert 0.1 <= sigma_B.min() and sigma_B.max() <= 0.5
    assert sigma_B.max() - sigma_B.min() > 0.3
    offset = 0 if mode == "sigma" else 1
    assert torch.allclose(timestep_B, sigma_B * 1000 + offset, atol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_uniforms_of_the_batch_decide_and_stratify(mode: str) -> None:
    uniform_B = (torch.arange(400) + 0.5) / 400
    one, _ = levels(400, seed=1, uniform_B=uniform_B, mode=mode)
    two, _ = levels(400, seed=2, uniform_B=uniform_B, mode=mode)
    if "qinglong" in mode:  # which part of the mixture is always drawn afresh
        assert (one == two).float().mean() > 0.5
    else:
        assert torch.equal(one, two)
    fresh, _ = levels(40_000, mode=mode)
    marks = torch.tensor([0.1, 0.5, 0.9])
    assert torch.allclose(torch.quantile(one, marks), torch.quantile(fresh, marks), atol=0.06)


def test_preserving_the_shape_keeps_stratified_uniforms_that_fall_inside() -> None:
    uniform_B = torch.tensor([0.05, 0.3, 0.6, 0.95])
    sigma_B, _ = levels(4, uniform_B=uniform_B, mode="uniform", min_timestep=200, max_timestep=800, preserve_shape=True)
    assert torch.equal(sigma_B[1:3], uniform_B[1:3])
    assert 0.2 <= sigma_B.min() and sigma_B.max() <= 0.8


def test_preserving_the_shape_is_no_squeezing() -> None:
    """Kept inside 300..700, a sigmoid draw has its own density there; squeezed, all its mass is in the middle."""
    kept, _ = levels(20_000, mode="sigmoid", min_timestep=300, max_timestep=700, preserve_shape=True)
    free, _ = levels(80_000, seed=5, mode="sigmoid")
    inside = free[(free >= 0.3) & (free <= 0.7)]
    assert kept.std() == pytest.approx(inside.std().item(), rel=0.03)
    squeezed, _ = levels(20_000, mode="sigmoid", min_timestep=300, max_timestep=700)
    assert squeezed.std() < 0.9 * kept.std()


def test_a_window_that_nothing_falls_into_is_an_error_not_an_endless_loop() -> None:
    with pytest.raises(OptionError, match="preserve_distribution_shape"):
        levels(8, mode="logsnr", logit_mean=-30.0, logit_std=0.1, max_timestep=500, preserve_shape=True)


def test_mode_scheme_never_leaves_the_table() -> None:
    """At u = 0 the mode density points one place beyond the 1000-step table."""
    uniform_B = torch.tensor([0.0, 1.0 - 2**-24, 0.5])
    _, timestep_B = levels(3, uniform_B=uniform_B, mode="sigma", weighting_scheme="mode")
    assert timestep_B.min() >= 1 and timestep_B.max() <= 1000


def test_loss_weights() -> None:
    timestep_B = torch.tensor([1.0, 250.0, 500.4, 1001.0])
    sigma_B = torch.tensor([0.001, 0.25, 0.5, 1.0])
    assert torch.allclose(loss_weight("sigma_sqrt", timestep_B), sigma_B**-2)
    cosmap = 2 / (math.pi * (1 - 2 * sigma_B + 2 * sigma_B**2))
    assert torch.allclose(loss_weight("cosmap", timestep_B), cosmap)
    assert loss_weight("logit_normal", timestep_B) is None and loss_weight("none", timestep_B) is None
    assert torch.isfinite(loss_weight("sigma_sqrt", torch.tensor([0.0]))).all()


def test_resolution_shift_ignores_frames_and_hits_the_ends_of_the_line() -> None:
    assert resolution_shift("flux_shift", (32, 32)) == pytest.approx(math.exp(0.5))
    assert resolution_shift("flux_shift", (128, 128)) == pytest.approx(math.exp(1.15))
    assert resolution_shift("qwen_shift", (128, 256)) == pytest.approx(math.exp(0.9))
    assert resolution_shift("flux2_shift", (64, 64)) == pytest.approx(math.exp(1.15))


@pytest.mark.parametrize(
    "values",
    [
        {"mode": "shiift"},
        {"weighting_scheme": "cos"},
        {"min_timestep": 700, "max_timestep": 300},
        {"max_timestep": 1200},
        {"discrete_flow_shift": 0.0},
    ],
)
def test_senseless_options_are_refused(values) -> None:
    with pytest.raises(OptionError, match="--"):
        SigmaSampling(**values)


def test_show_timesteps_draws_what_is_trained() -> None:
    counts, weights = histogram(SigmaSampling(mode="shift", discrete_flow_shift=5.0), draws=20_000)
    assert sum(counts) == 20_000 and weights == [1.0] * 40
    assert sum(counts[30:]) > 0.6 * 20_000
    lines = describe(SigmaSampling(mode="uniform", weighting_scheme="sigma_sqrt"))
    assert len(lines) == 83 and any("#" * 50 in line for line in lines)
