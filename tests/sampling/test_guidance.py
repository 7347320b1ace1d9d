from __future__ import annotations

import pytest
import torch

from engine.sampling.guidance import (
    GuidancePlan,
    Predictions,
    guided,
    guided_along,
    guided_batch,
    guided_steps,
    in_turn,
    layer_guided,
    rescale_noise_cfg,
)


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


# ------------------------------------------------------------------------------------------------- along the steps


def skipped(x, timestep_B):
    return -0.3 * x + 2


@pytest.mark.parametrize(
    ("mode", "share", "steps", "pattern"),
    [
        ("none", 0.5, 4, "AAAA"),
        ("early", 0.5, 6, "SSSAAA"),
        ("late", 0.5, 6, "AAASSS"),
        ("middle", 0.5, 6, "ASSSAA"),
        ("middle", 0.5, 8, "AASSSSAA"),
        ("early_late", 0.5, 6, "SAAASS"),
        ("early_late", 0.5, 8, "SSAAAASS"),
        ("alternate", 0.5, 6, "SASASA"),
        ("early", 0.25, 10, "SSSSSSSSAA"),
        ("late", 0.0, 3, "SSS"),
        ("alternate", 1.0, 3, "AAA"),
        ("alternate", 0.7, 10, "SAASAASAAA"),
    ],
)
def test_in_which_steps_guidance_acts(mode, share, steps, pattern):
    """The patterns of musubi-tuner 30c658c; of the last one it loses the tenth step to rounding."""
    assert "".join("A" if acts else "S" for acts in guided_steps(mode, share, steps)) == pattern


@pytest.mark.parametrize("mode", ["early", "late", "middle", "early_late", "alternate"])
def test_a_decimal_share_is_exactly_that_many_steps(mode):
    """0.29 of 100 steps is 28.999999999999996 to a computer, and ten tenths added up are less than 1."""
    assert sum(guided_steps(mode, 0.29, 100)) == 29 and sum(guided_steps(mode, 0.1, 10)) == 1


def test_layer_guidance_formula(inputs):
    x, t = inputs
    expected = uncond(x, t) + 5 * (cond(x, t) - uncond(x, t)) + 3 * (cond(x, t) - skipped(x, t))
    torch.testing.assert_close(layer_guided(cond, uncond, skipped, 5.0, layer_scale=3.0)(x, t), expected)
    alone = cond(x, t) + 3 * (cond(x, t) - skipped(x, t))
    torch.testing.assert_close(layer_guided(cond, never, skipped, 1.0, layer_scale=3.0)(x, t), alone)


def test_each_step_has_its_own_velocity(inputs):
    x, t = inputs
    plan = GuidancePlan(
        cfg_skip_mode="late", cfg_apply_ratio=0.75, slg_mode="original", slg_scale=2.0, slg_start=0.5, slg_end=1.0
    )
    models = Predictions(conditional=cond, unconditional=uncond, skipped=skipped)
    walk = in_turn(guided_along(plan, models, [4.0, 3.0, 3.0, 3.0]))
    found = [walk(x, t) for _ in range(4)]
    wanted = [
        guided(cond, uncond, 4.0), guided(cond, uncond, 3.0), layer_guided(cond, uncond, skipped, 3.0, layer_scale=2.0),
        cond,
    ]  # fmt: skip
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other(x, t))


def test_mode_uncond_puts_the_skipped_prediction_in_the_unconditional_ones_place(inputs):
    models = Predictions(conditional=cond, unconditional=never, skipped=skipped)
    plan = GuidancePlan(slg_mode="uncond", slg_start=0.0, slg_end=1.0)
    (velocity,) = guided_along(plan, models, [5.0])
    torch.testing.assert_close(velocity(*inputs), guided(cond, skipped, 5.0)(*inputs))


def test_one_call_for_both_serves_guided_steps_only(inputs):
    def both(x, timestep_B):
        half = len(x) // 2
        return torch.cat([cond(x[:half], timestep_B[:half]), uncond(x[half:], timestep_B[half:])])

    models = Predictions(conditional=cond, unconditional=never, both=both)
    plan = GuidancePlan(cfg_skip_mode="early", cfg_apply_ratio=0.5)
    first, second = guided_along(plan, models, [5.0, 5.0])
    torch.testing.assert_close(first(*inputs), cond(*inputs))
    torch.testing.assert_close(second(*inputs), guided(cond, uncond, 5.0)(*inputs))
