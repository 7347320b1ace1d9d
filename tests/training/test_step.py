"""The rectified-flow step."""

from __future__ import annotations

import torch

from engine.training.step import add_noise, flow_error, flow_step, prior_error


def test_noise_mixing_at_both_ends() -> None:
    clean, noise = torch.randn(2, 4, 3, 2, 2), torch.randn(2, 4, 3, 2, 2)
    mixed = add_noise(clean, noise, torch.tensor([0.0, 1.0]))
    assert torch.equal(mixed[0], clean[0]) and torch.equal(mixed[1], noise[1])


def test_the_target_is_noise_minus_clean_and_the_weight_is_per_sample() -> None:
    clean, noise = torch.randn(2, 4, 3, 2, 2), torch.randn(2, 4, 3, 2, 2)
    sigma_B, timestep_B = torch.tensor([0.2, 0.8]), torch.tensor([201.0, 801.0])
    seen = {}

    def perfect(x, timestep, cond):
        seen.update(x=x, timestep=timestep, cond=cond)
        return noise - clean

    values = {"sigma_B": sigma_B, "timestep_B": timestep_B, "noise_BCTHW": noise}
    assert flow_step(perfect, clean, {"text": 1}, **values) == 0
    assert torch.allclose(seen["x"][1], 0.2 * clean[1] + 0.8 * noise[1])
    assert torch.equal(seen["timestep"], timestep_B) and seen["cond"] == {"text": 1}

    def off(x, timestep, cond):
        return noise - clean + torch.tensor([1.0, 2.0]).view(2, 1, 1, 1, 1)

    assert torch.allclose(flow_step(off, clean, {}, **values), torch.tensor(2.5), atol=1e-5)
    weighted = flow_step(off, clean, {}, **values, weight_B=torch.tensor([2.0, 0.5]))
    assert torch.allclose(weighted, torch.tensor(2.0), atol=1e-5)


def test_the_error_is_float32_whatever_the_model_answers() -> None:
    clean, noise = torch.randn(1, 4, 1, 2, 2).bfloat16(), torch.randn(1, 4, 1, 2, 2)
    loss = flow_step(
        lambda x, timestep, cond: x.bfloat16(),
        clean,
        {},
        sigma_B=torch.ones(1),
        timestep_B=torch.ones(1),
        noise_BCTHW=noise,
    )
    expected = ((noise.bfloat16().float() - noise + clean.float()) ** 2).mean()
    assert loss.dtype == torch.float32 and torch.allclose(loss, expected)


def test_prior_preservation_measures_the_way_from_the_prior_and_the_error_beside_it() -> None:
    clean, noise = torch.randn(2, 4, 3, 2, 2), torch.randn(2, 4, 3, 2, 2)
    values = {
        "sigma_B": torch.tensor([0.3, 0.9]),
        "timestep_B": torch.tensor([300.0, 900.0]),
        "noise_BCTHW": noise,
        "weight_B": torch.tensor([2.0, 0.5]),
    }
    learned = torch.tensor(0.5, requires_grad=True)

    def prior(x, timestep, cond):
        return 0.25 * x + cond["text"] * learned

    def velocity(x, timestep, cond):
        return 0.25 * x + cond["text"] * learned + timestep.view(-1, 1, 1, 1, 1) / 1000 * learned

    strayed, error = prior_error(velocity, prior, clean, {"text": 3.0}, **values)
    expected = torch.tensor([2.0 * 0.15**2, 0.5 * 0.45**2]).view(2, 1, 1, 1, 1).expand_as(clean)
    assert torch.allclose(strayed, expected, atol=1e-5)
    assert torch.equal(error, flow_error(velocity, clean, {"text": 3.0}, **values))
    strayed[0].mean().backward()
    assert torch.allclose(learned.grad, torch.tensor(2.0 * 2 * 0.15 * 3.3), atol=1e-4)  # none through the prior
