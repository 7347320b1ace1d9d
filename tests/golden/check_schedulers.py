"""Solvers and sigma schedules against the public implementations: every run that the file describes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from engine.ops.sigmas import framepack_mu
from engine.sampling import samplers
from engine.sampling.guidance import guided
from engine.sampling.schedules import (
    Schedule,
    diffusers_schedule,
    framepack_schedule,
    linear_schedule,
    wan_dpm_schedule,
    wan_unipc_schedule,
)
from tests.golden.kit import Golden, Row, row

RUNS: dict[str, tuple[Callable[[int, float], Schedule], Callable[..., Tensor]]] = {
    "wan_unipc": (wan_unipc_schedule, samplers.unipc),
    "wan_dpmpp": (wan_dpm_schedule, samplers.dpm_plus_plus),
    "hv_euler": (linear_schedule, samplers.euler),
    "diffusers_euler": (diffusers_schedule, samplers.euler),
}


def velocity(x: Tensor, timestep_B: Tensor) -> Tensor:
    """The file's toy model: 0.7·tanh(x) + 0.3·cos(2·sigma) − 0.2·x·sigma."""
    sigma = (timestep_B.float() / 1000).view(-1, *[1] * (x.ndim - 1))
    return 0.7 * torch.tanh(x) + 0.3 * torch.cos(2 * sigma) - 0.2 * x * sigma


def negative(x: Tensor, timestep_B: Tensor) -> Tensor:
    """What the file's FramePack runs take as the negative prompt's velocity."""
    return 0.5 * velocity(x, timestep_B) + 0.1


def recorded(states: list[Tensor], count: int) -> Tensor:
    """The steps that a file keeps: all, or the first and last few."""
    kept = states if len(states) == count else states[: count // 2] + states[-(count // 2) :]
    return torch.stack(kept)


def check_plain(golden: Golden, run: dict) -> Iterable[Row]:
    name, tensors = run["name"], golden.tensors
    build, sample = next(pair for prefix, pair in RUNS.items() if name.startswith(prefix))
    schedule = build(run["n"], run["shift"])
    states: list[Tensor] = []
    sample(velocity, tensors["x_init"], schedule, on_step=lambda step: states.append(step.x))
    yield row(f"{name} sigmas", schedule.sigmas, tensors[f"{name}.sigmas"], 1e-6)
    whole = tensors[f"{name}.timesteps"].dtype == torch.int64  # else 0..1000 in float32: one unit in the last place
    yield row(f"{name} timesteps", schedule.timesteps, tensors[f"{name}.timesteps"], 0.0 if whole else 1e-4)
    theirs = tensors[f"{name}.traj"]
    yield row(f"{name} states", recorded(states, len(theirs)), theirs)


def check_framepack(golden: Golden, run: dict) -> Iterable[Row]:
    name, tensors = run["name"], golden.tensors
    schedule = framepack_schedule(run["n"], run["mu"])
    starts: list[Tensor] = []
    out = samplers.unipc(
        guided(velocity, negative, run["cfg_scale"], rescale=run["cfg_rescale"]),
        tensors["x_init"],
        schedule,
        on_step=lambda step: starts.append(step.start),
        order=min(3, run["n"] - 1),
        variant=run["variant"],
        lower_order_final=False,
        clock="log_sigma",
    )
    if "context_length=" in run["mu_from"]:
        tokens = int(run["mu_from"].split("context_length=")[1].rstrip(")"))
        yield row(f"{name} mu", torch.tensor(framepack_mu(tokens)), torch.tensor(run["mu"]), 1e-9)
    yield row(f"{name} sigmas", schedule.sigmas, tensors[f"{name}.sigmas"], 1e-6)
    yield row(f"{name} out", out, tensors[f"{name}.out"])
    theirs = tensors[f"{name}.x"]
    yield row(f"{name} x", recorded(starts, len(theirs)), theirs)


def check(golden: Golden) -> Iterable[Row]:
    for run in golden.info["runs"]:
        yield from (check_framepack if run["name"].startswith("framepack") else check_plain)(golden, run)


CHECKS = {"schedulers*": check}
