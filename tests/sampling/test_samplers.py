from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

from engine.contract.errors import OptionError, Stopped
from engine.sampling import samplers
from engine.sampling.samplers import sample
from engine.sampling.schedules import Schedule, linear_schedule, tail, wan_unipc_schedule


def velocity(x, timestep_B):
    sigma = (timestep_B / 1000).view(-1, 1, 1)
    return 0.7 * torch.tanh(x) + 0.3 * torch.cos(2 * sigma) - 0.2 * x * sigma


@pytest.fixture
def noise():
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))


def run_diffusers(scheduler, x, steps):
    scheduler.set_timesteps(steps)
    schedule = Schedule(sigmas=scheduler.sigmas.float(), timesteps=scheduler.timesteps.float())
    states = []
    for timestep in scheduler.timesteps:
        x = scheduler.step(velocity(x, timestep.float().expand(len(x))), timestep, x, return_dict=False)[0]
        states.append(x)
    return schedule, torch.stack(states)


def states_of(solver, x, schedule, **parameters):
    states = []
    solver(velocity, x, schedule, on_step=lambda step: states.append(step.x), **parameters)
    return torch.stack(states)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("corrector", [True, False])
def test_unipc_is_diffusers_unipc(noise, order, variant, corrector):
    theirs = UniPCMultistepScheduler(
        solver_order=order,
        solver_type=variant,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=3.0,
        disable_corrector=[] if corrector else list(range(100)),
    )
    schedule, expected = run_diffusers(theirs, noise, 9)
    ours = states_of(samplers.unipc, noise, schedule, order=order, variant=variant, corrector=corrector)
    last = -1 if variant == "bh1" else None  # theirs ends in NaN with bh1: 0 times an infinite B(h)
    torch.testing.assert_close(ours[:last], expected[:last], rtol=0, atol=1e-5)
    assert ours.isfinite().all()


def test_dpm_plus_plus_is_diffusers_dpm(noise):
    theirs = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, final_sigmas_type="zero"
    )
    schedule, expected = run_diffusers(theirs, noise, 9)
    torch.testing.assert_close(states_of(samplers.dpm_plus_plus, noise, schedule), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", list(samplers.SOLVERS))
def test_a_constant_clean_image_is_found_by_every_solver(name, noise):
    target = torch.full_like(noise, 0.25)

    def towards(x, timestep_B):
        return (x - target) / (timestep_B / 1000).view(-1, 1, 1).clamp(min=1e-3)

    schedule = linear_schedule(6, 1.0)
    found = samplers.SOLVERS[name].sample(towards, noise, schedule)
    torch.testing.assert_close(found, target, rtol=0, atol=1e-5)


def test_second_order_converges_as_such(noise):
    """Halving the steps' length divides the error by four or more with order 2."""

    def error(steps, order):
        solved = samplers.unipc(velocity, noise, _even(steps), order=order, lower_order_final=False)
        return (solved - exact).abs().max()

    exact = samplers.unipc(velocity, noise, _even(400), order=3, lower_order_final=False)
    assert error(5, 2) / error(10, 2) > 3
    assert error(5, 2) * 5 < (samplers.euler(velocity, noise, _even(5)) - exact).abs().max()


def _even(steps):
    sigmas = torch.linspace(0.8, 0.3, steps + 1)
    return Schedule(sigmas=sigmas, timesteps=sigmas[:-1] * 1000)


@pytest.mark.parametrize("name", list(samplers.SOLVERS))
@pytest.mark.parametrize("schedule", [linear_schedule, wan_unipc_schedule])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_and_a_start_at_pure_noise_stay_finite(name, schedule, steps, noise):
    found = samplers.SOLVERS[name].sample(velocity, noise, schedule(steps, 5.0))
    assert found.isfinite().all()


def test_unipc_survives_pure_noise_in_both_clocks(noise):
    for clock in ("half_log_snr", "log_sigma"):
        found = samplers.unipc(velocity, noise, linear_schedule(6, 5.0), order=3, clock=clock, variant="bh1")
        assert found.isfinite().all()


@pytest.mark.parametrize("name", list(samplers.SOLVERS))
def test_on_step_sees_every_step_and_may_stop(name, noise):
    seen = []

    def stop_after_two(step):
        seen.append((step.done, step.total, round(step.sigma, 4)))
        if step.done == 2:
            raise Stopped("stopped")

    with pytest.raises(Stopped):
        samplers.sample(velocity, noise, solver=name, steps=5, shift=1.0, on_step=stop_after_two)
    assert [entry[:2] for entry in seen] == [(1, 5), (2, 5)]
    assert seen[0][2] > seen[1][2] > 0


@pytest.mark.parametrize("name", list(samplers.SOLVERS))
def test_latents_stay_float32_whatever_the_model_returns(name, noise):
    def half(x, timestep_B):
        assert x.dtype == torch.float32 and timestep_B.shape == (len(x),)
        return velocity(x, timestep_B).bfloat16()

    found = samplers.sample(half, noise.bfloat16(), solver=name, steps=4, shift=5.0)
    assert found.dtype == torch.float32


def test_solvers_keep_no_graph(noise):
    weight = torch.nn.Parameter(torch.ones(()))
    found = samplers.sample(lambda x, _: weight * x, noise, solver="unipc", steps=3, shift=5.0)
    assert not found.requires_grad


def test_the_input_is_left_alone(noise):
    before = noise.clone()
    for name in samplers.SOLVERS:
        samplers.sample(velocity, noise, solver=name, steps=3, shift=5.0)
    assert torch.equal(noise, before)


def test_vanilla_is_euler(noise):
    a, b = (samplers.sample(velocity, noise, solver=name, steps=5, shift=3.0) for name in ("euler", "vanilla"))
    assert torch.equal(a, b)


def test_unknown_solver_names_the_flag_and_the_choices(noise):
    with pytest.raises(OptionError) as caught:
        samplers.sample(velocity, noise, solver="ddim", steps=5, shift=3.0)
    assert "ddim" in caught.value.message and "--sample_solver" in caught.value.hint and "unipc" in caught.value.hint


def test_a_video_to_start_from_gets_the_noise_of_its_place_in_the_schedule():
    """As diffusers' video-to-video: the same place, and the same mixture there."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanVideoToVideoPipeline

    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=linear_schedule(10, 3.0).sigmas[:-1].tolist())
    pipeline = SimpleNamespace(scheduler=scheduler)
    clean, noise = torch.randn(1, 4, 2, 3, 3), torch.randn(1, 4, 2, 3, 3)
    for strength in (0.35, 0.8, 1.0):
        timesteps, steps = WanVideoToVideoPipeline.get_timesteps(pipeline, 10, scheduler.timesteps, strength, "cpu")
        seen = []

        def velocity(x, timestep_B, seen=seen):
            seen.append((x, timestep_B))
            return noise - clean

        found = sample(velocity, noise, solver="euler", steps=10, shift=3.0, clean=clean, strength=strength)
        wanted = scheduler.scale_noise(clean, timesteps[:1], noise)
        assert len(seen) == steps and (seen[0][0] - wanted).abs().max() < 1e-6
        assert abs(seen[0][1].item() - timesteps[0].item()) < 1e-3
        assert (found - clean).abs().max() < 1e-5


def test_a_strength_below_one_step_is_one_step():
    """In the reference it takes the whole schedule: the last 0 timesteps are all of them."""
    schedule = tail(linear_schedule(10, 3.0), 0.05)
    assert len(schedule) == 1 and schedule.sigmas.tolist() == linear_schedule(10, 3.0).sigmas[-2:].tolist()
