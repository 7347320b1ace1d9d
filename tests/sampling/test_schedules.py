from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from engine.contract.errors import OptionError
from engine.ops.sigmas import framepack_mu
from engine.sampling import schedules

BUILDERS = [
    schedules.wan_unipc_schedule,
    schedules.wan_dpm_schedule,
    schedules.linear_schedule,
    schedules.diffusers_schedule,
]


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("shift", [0.5, 1.0, 5.0])
def test_sigmas_fall_from_noise_to_clean(build, steps, shift):
    schedule = build(steps, shift)
    assert len(schedule) == steps and len(schedule.sigmas) == steps + 1
    assert schedule.sigmas.dtype == schedule.timesteps.dtype == torch.float32
    assert 0.99 < schedule.sigmas[0] <= 1 and schedule.sigmas[-1] == 0
    assert (schedule.sigmas.diff() < 0).all()
    assert (
        (schedule.timesteps - 1000 * schedule.sigmas[:-1]).abs() < 1.001
    ).all()  # whole numbers are cut, not rounded


@pytest.mark.parametrize("build", [schedules.wan_unipc_schedule, schedules.wan_dpm_schedule])
def test_wan_timesteps_are_whole(build):
    timesteps = build(20, 5.0).timesteps
    assert torch.equal(timesteps, timesteps.floor())


def test_wan_unipc_starts_below_one():
    assert schedules.wan_unipc_schedule(10, 1.0).sigmas[0].item() == pytest.approx(0.999, abs=1e-7)


@pytest.mark.parametrize("steps, shift", [(1, 3.0), (6, 3.0), (50, 5.0)])
def test_diffusers_schedule_is_diffusers(steps, shift):
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(steps)
    ours = schedules.diffusers_schedule(steps, shift)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=0, atol=2e-4)


def test_framepack_shift_is_capped_at_seven():
    assert framepack_mu(256) == pytest.approx(0.5)
    assert framepack_mu(4096) == pytest.approx(1.15)
    assert framepack_mu(10**6) == math.log(7)
    fixed = schedules.framepack_schedule(8, math.log(3.0))
    torch.testing.assert_close(fixed.sigmas, schedules.linear_schedule(8, 3.0).sigmas)


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize(
    "steps, shift, flag", [(0, 5.0, "--infer_steps"), (4, 0.0, "--flow_shift"), (4, math.nan, "--flow_shift")]
)
def test_bad_values_name_the_flag(build, steps, shift, flag):
    with pytest.raises(OptionError) as caught:
        build(steps, shift)
    assert flag in caught.value.hint
