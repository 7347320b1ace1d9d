"""Solvers of the flow ODE dx/dsigma = velocity, from noise (sigma 1) to a clean latent (sigma 0).

Each is a pure function `(velocity, x, schedule, *, on_step=None)`. `velocity(x_BCTHW, timestep_B)` gives noise − clean;
guidance, step caches and previews are wrappers around it. Latents are held in float32; the few coefficients of a step
are worked out in float64 from the schedule's float32 sigmas. No solver draws random numbers.

Both multistep solvers work on the clean prediction m = x − sigma·v and on a clock lambda that grows as noise falls.
In that clock the ODE is solved exactly but for m, which is extrapolated from earlier steps:

    x(t) = sigma_t/sigma_s · x(s)  +  sigma_t ∫ e^lambda m(lambda) dlambda          (Lu et al., 2211.01095, eq. 8)

Given up: stochastic solvers, and choosing the order by an error estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..contract.errors import OptionError
from .schedules import Schedule, linear_schedule, tail, wan_dpm_schedule, wan_unipc_schedule

Velocity = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What `on_step` is told after a step. `on_step` may raise `Stopped` to end the sampling."""

    done: int
    """Steps done, 1..total."""
    total: int
    sigma: float
    """Noise level of `x`, 0 after the last step."""
    start: Tensor
    """The latent that the step began from (after UniPC's corrector)."""
    x: Tensor
    clean: Tensor
    """The clean latent as the model saw it in this step: what a preview shows."""


OnStep = Callable[[Step], None]


@torch.no_grad()
def euler(velocity: Velocity, x: Tensor, schedule: Schedule, *, on_step: OnStep | None = None) -> Tensor:
    """Euler's method: x += (sigma_next − sigma)·v. Returns the latent at sigma 0, float32."""
    x = x.float()
    for index in range(len(schedule)):
        sigma, following = schedule.sigmas[index].item(), schedule.sigmas[index + 1].item()
        guess = _ask(velocity, x, schedule, index)
        clean = x - sigma * guess
        start, x = x, x + (following - sigma) * guess
        _tell(on_step, schedule, index, start, x, clean)
    return x


@torch.no_grad()
def dpm_plus_plus(velocity: Velocity, x: Tensor, schedule: Schedule, *, on_step: OnStep | None = None) -> Tensor:
    """DPM-Solver++(2M), midpoint (Lu et al., 2211.01095, algorithm 2). Returns the latent at sigma 0, float32.

    The first step has no past and the last one ends at infinite lambda: both are of first order.
    """
    x = x.float()
    line = _line(schedule, "half_log_snr")
    before: Tensor | None = None
    for index in range(len(schedule)):
        clean = _clean(velocity, x, schedule, index)
        target, h = clean, line.length(index)
        if before is not None and math.isfinite(h):
            # r in the paper is last_h / h; a last step of infinite length (from pure noise) counts nothing
            target = clean + h / (2 * line.length(index - 1)) * (clean - before)
        start, x = x, _first_order(x, target, line, index)
        before = clean
        _tell(on_step, schedule, index, start, x, clean)
    return x


@torch.no_grad()
def unipc(
    velocity: Velocity,
    x: Tensor,
    schedule: Schedule,
    *,
    on_step: OnStep | None = None,
    order: int = 2,
    variant: str = "bh2",
    corrector: bool = True,
    lower_order_final: bool = True,
    clock: str = "half_log_snr",
) -> Tensor:
    """UniPC (Zhao et al., 2302.04867, multistep, data prediction). Returns the latent at sigma 0, float32.

    The predictor UniP-p fits a polynomial through the last p clean predictions; the corrector UniC-p repeats the step
    with the prediction made at its end, which costs no further call of the model.
    order: 1..3. variant: B(h) = h ("bh1") or e^h − 1 ("bh2"); it matters only where the paper sets a_1 = 1/2, in a
    predictor of order 2 and a corrector of order 1. lower_order_final: shorten the past towards the end.
    clock: "half_log_snr" is lambda = log((1 − sigma)/sigma); "log_sigma" is lambda = −log sigma (FramePack's).
    The defaults are Wan's; FramePack: `order=3, variant="bh1", lower_order_final=False, clock="log_sigma"`.
    """
    if order not in (1, 2, 3) or variant not in ("bh1", "bh2"):
        raise ValueError(f"unipc has orders 1 to 3 and variants bh1, bh2, not order {order}, variant {variant!r}")
    x = x.float()
    line = _line(schedule, clock)
    past: list[Tensor] = []  # clean predictions, newest last
    start, used = x, 1  # where the last step began, and its order
    for index in range(len(schedule)):
        clean = _clean(velocity, x, schedule, index)
        if corrector and index > 0 and math.isfinite(line.length(index - 1)):
            x = _advance(start, past[-used:], clean, line, index - 1, variant)
        past = [*past, clean][-order:]
        used = min(len(past), len(schedule) - index if lower_order_final else order)
        if not math.isfinite(line.length(index)):
            used = 1
        start = x
        x = _advance(start, past[-used:], None, line, index, variant)
        _tell(on_step, schedule, index, start, x, clean)
    return x


@dataclass(frozen=True)
class _Line:
    """The sigmas of a schedule with their clock: `lambdas`, and `alphas` = sigma·e^lambda. Plain floats."""

    sigmas: list[float]
    alphas: list[float]
    lambdas: list[float]

    def length(self, index: int) -> float:
        """How far step `index` goes in lambda; infinite from pure noise or to a clean latent."""
        return self.lambdas[index + 1] - self.lambdas[index]


def _line(schedule: Schedule, clock: str) -> _Line:
    sigmas = schedule.sigmas.double().tolist()
    if clock == "half_log_snr":
        alphas = [1.0 - sigma for sigma in sigmas]
    elif clock == "log_sigma":
        alphas = [1.0] * len(sigmas)
    else:
        raise ValueError(f"no clock {clock!r}: half_log_snr or log_sigma")
    return _Line(sigmas, alphas, [_log(a) - _log(s) for a, s in zip(alphas, sigmas, strict=True)])


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _first_order(x: Tensor, clean: Tensor, line: _Line, index: int) -> Tensor:
    """Step `index` with a constant clean prediction: exact, and the same in every clock."""
    kept = line.sigmas[index + 1] / line.sigmas[index]
    return kept * x + (1 - kept) * clean


def _advance(x: Tensor, past: list[Tensor], ahead: Tensor | None, line: _Line, index: int, variant: str) -> Tensor:
    """Step `index` by UniPC: UniP from the clean predictions `past` (newest last), UniC with the one at its end too.

    With r = (lambda − lambda_s)/h the differences m_j − m_s get the weights w_j for which Σ w_j r_j^n is the exact
    integral of r^n over the step, n = 1, 2, … (the paper's a_j·B(h)/r_j). Points at pure noise lie infinitely far
    back and take no part.
    """
    newest, h = past[-1], line.length(index)
    result = _first_order(x, newest, line, index)
    points = [(line.lambdas[index - back], past[-1 - back]) for back in range(1, len(past))]
    if ahead is not None:
        points.append((line.lambdas[index + 1], ahead))
    places = [((at - line.lambdas[index]) / h, clean) for at, clean in points if math.isfinite(at)]
    for weight, (_, clean) in zip(_weights([r for r, _ in places], h, variant), places, strict=True):
        result = result + line.alphas[index + 1] * weight * (clean - newest)
    return result


def _weights(places: list[float], h: float, variant: str) -> list[float]:
    """w_j for points at `places` (in units of the step): see `_advance`. A single point takes a_1 = 1/2."""
    if not places:
        return []
    if len(places) == 1:
        return [(h if variant == "bh1" else -math.expm1(-h)) / 2 / places[0]]
    exponents = range(1, len(places) + 1)
    powers = torch.tensor([[r**n for r in places] for n in exponents], dtype=torch.float64)
    integrals = torch.tensor([h * math.factorial(n) * _phi(n + 1, -h) for n in exponents], dtype=torch.float64)
    return torch.linalg.solve(powers, integrals).tolist()


def _phi(k: int, z: float) -> float:
    """The phi function of exponential integrators: phi_1 = (e^z − 1)/z, phi_{k+1} = (phi_k − 1/k!)/z."""
    value = math.expm1(z) / z
    for n in range(1, k):
        value = (value - 1 / math.factorial(n)) / z
    return value


def _ask(velocity: Velocity, x: Tensor, schedule: Schedule, index: int) -> Tensor:
    timestep_B = schedule.timesteps[index].to(x.device).expand(x.shape[0])
    return velocity(x, timestep_B).float()


def _clean(velocity: Velocity, x: Tensor, schedule: Schedule, index: int) -> Tensor:
    return x - schedule.sigmas[index].item() * _ask(velocity, x, schedule, index)


def _tell(on_step: OnStep | None, schedule: Schedule, index: int, start: Tensor, x: Tensor, clean: Tensor) -> None:
    if on_step is not None:
        sigma = schedule.sigmas[index + 1].item()
        on_step(Step(done=index + 1, total=len(schedule), sigma=sigma, start=start, x=x, clean=clean))


@dataclass(frozen=True)
class Solver:
    """A solver with the schedule that its reference uses: `schedule(steps, shift)`."""

    sample: Callable[..., Tensor]
    schedule: Callable[[int, float], Schedule]


unipc_3 = partial(unipc, order=3, variant="bh1", lower_order_final=False, clock="log_sigma")
"""UniPC as FramePack was published with it."""

SOLVERS: dict[str, Solver] = {
    "unipc": Solver(unipc, wan_unipc_schedule),
    "unipc-3": Solver(unipc_3, linear_schedule),
    "dpm++": Solver(dpm_plus_plus, wan_dpm_schedule),
    "euler": Solver(euler, linear_schedule),
    "vanilla": Solver(euler, linear_schedule),
}
"""By the names that `--sample_solver` takes; "vanilla" is the reference tool's word for euler. "unipc-3" is what a
family may choose in place of "unipc"."""


def schedule_of(solver: str, *, steps: int, shift: float, strength: float = 1.0) -> Schedule:
    """The schedule that a named solver walks; of a `strength` below 1 only its end."""
    if solver not in SOLVERS:
        raise OptionError(f"There is no solver {solver!r}.", hint=f"Choose --sample_solver from {', '.join(SOLVERS)}.")
    schedule = SOLVERS[solver].schedule(steps, shift)
    return schedule if strength == 1 else tail(schedule, strength)


def sample(
    velocity: Velocity,
    x: Tensor,
    *,
    solver: str,
    steps: int,
    shift: float,
    clean: Tensor | None = None,
    strength: float = 1.0,
    on_step: OnStep | None = None,
) -> Tensor:
    """Solve from noise `x_BCTHW` to a clean latent with a named solver on its own schedule (`schedule_of`).

    With `clean` (latents of x's shape) only the last `strength` of the schedule is walked, from these latents under
    the noise of the level where that begins (SDEdit, 2108.01073).
    """
    schedule = schedule_of(solver, steps=steps, shift=shift, strength=1.0 if clean is None else strength)
    if clean is not None:
        sigma = schedule.sigmas[0].item()
        x = (1 - sigma) * clean.float() + sigma * x.float()
    return SOLVERS[solver].sample(velocity, x, schedule, on_step=on_step)
