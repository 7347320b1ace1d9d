from __future__ import annotations

import pytest
import torch

from engine.sampling.guidance import guided, guided_batch, rescale_noise_cfg


def cond(x, timestep_B):
    return 2 * x + timestep_B.view(-1, 1) / 1000


def uncond(x, timestep_B):
    return 0.5 * x - 1


def never(x, timestep_B):
    raise AssertionError("called")


@pytest.fixture
def inputs():
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([900.0, 500.0, 10.0])


def test_formula(inputs):
    x, t = inputs
    expected = uncond(x, t) + 5 * (cond(x, t) - uncond(x, t))
    torch.testing.assert_close(guided(cond, uncond, 5.0)(x, t), expected)


def test_scale_one_never_calls_the_unconditional_model(inputs):
    torch.testing.assert_close(guided(cond, never, 1.0)(*inputs), cond(*inputs))
    torch.testing.assert_close(guided(cond, None, 1.0)(*inputs), cond(*inputs))


def test_scale_zero_is_the_unconditional_model(inputs):
    torch.testing.assert_close(guided(cond, uncond, 0.0)(*inputs), uncond(*inputs))


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_one_batched_call_gives_the_same(inputs, rescale):
    calls = []

    def both(x, timestep_B):
        calls.append(len(x))
        half = len(x) // 2
        return torch.cat([cond(x[:half], timestep_B[:half]), uncond(x[half:], timestep_B[half:])])

    batched = guided_batch(both, 4.0, rescale=rescale)(*inputs)
    torch.testing.assert_close(batched, guided(cond, uncond, 4.0, rescale=rescale)(*inputs))
    assert calls == [6]


def test_rescale_matches_the_spread_of_each_sample():
    generator = torch.Generator().manual_seed(3)
    guess, reference = 7 * torch.randn(2, 4, 3, 3, generator=generator), torch.randn(2, 4, 3, 3, generator=generator)
    full = rescale_noise_cfg(guess, reference, 1.0)
    torch.testing.assert_close(full.flatten(1).std(dim=1), reference.flatten(1).std(dim=1))
    assert torch.equal(rescale_noise_cfg(guess, reference, 0.0), guess)


def test_half_precision_predictions_are_combined_in_float32(inputs):
    x, t = inputs
    found = guided(lambda x, t: cond(x, t).bfloat16(), lambda x, t: uncond(x, t).bfloat16(), 5.0)(x, t)
    assert found.dtype == torch.float32


def test_missing_unconditional_velocity():
    with pytest.raises(ValueError, match="unconditional"):
        guided(cond, None, 5.0)
