"""TeaCache: its polynomial and its sum against the same worked out with NumPy, and measuring the polynomial."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.sampling.step_caches import Walk
from engine.sampling.teacache import CoefficientCalibration, TeaCache, fit, polynomial

from .stacks import Blocks, steps_run, walked

# TeaCache's for HunyuanVideo
COEFFICIENTS = [7.33226126e2, -4.01131952e2, 6.75869174e1, -3.149878, 9.61237896e-2]


def signals(steps: int) -> list[torch.Tensor]:
    """Inputs that change more and more."""
    generator = torch.Generator().manual_seed(3)
    found = [torch.randn(1, 4, 8, generator=generator)]
    for step in range(steps - 1):
        found.append(found[-1] + 0.01 * (1 + step % 7) * torch.randn(1, 4, 8, generator=generator))
    return found


def run_by_hand(inputs: list[torch.Tensor], coefficients: list[float], threshold: float) -> list[int]:
    """The rule of the paper's section 3.3 in NumPy: the first step and the last run, others once the sum has grown."""
    arrays = [one.double().numpy() for one in inputs]
    rescale, total, ran = np.poly1d(coefficients), 0.0, [0]
    for step in range(1, len(arrays)):
        total += rescale(np.abs(arrays[step] - arrays[step - 1]).mean() / np.abs(arrays[step - 1]).mean())
        if total >= threshold or step == len(arrays) - 1:
            ran.append(step)
            total = 0.0
    return ran


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.15, 0.4])
def test_steps_run_as_by_hand(threshold):
    inputs = signals(40)
    expected = run_by_hand(inputs, COEFFICIENTS, threshold)
    assert steps_run(TeaCache([COEFFICIENTS], threshold=threshold), inputs) == expected
    assert (len(expected) == 40) == (threshold == 0.0)


def test_it_looks_at_the_step_before_whether_that_ran_or_not():
    """1, 2, 4, 8: always a change of 1. Compared with the last step that ran it would be 1, 3 …"""
    inputs = [torch.full((1, 1, 1), value) for value in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)]
    assert steps_run(TeaCache([[1.0, 0.0]], threshold=2.5), inputs) == [0, 3, 5]


def test_each_expert_has_a_polynomial_of_its_own_that_for_much_noise_first():
    inputs = [torch.full((1, 1, 1), 2.0**step) for step in range(9)]
    method = TeaCache([[0.0], [1.0]], threshold=1.5)
    assert steps_run(method, inputs, experts=[1] * 4 + [0] * 5) == [0, 4, 6, 8]


def test_one_number_a_step_is_read_from_the_device(monkeypatch):
    read = []
    real = torch.Tensor.__float__
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: read.append(1) or real(self))
    steps_run(TeaCache([COEFFICIENTS], threshold=0.15), signals(20), start=0.2)
    assert len(read) == 20 - 4 - 1  # not where the step runs anyway


def test_the_polynomial_has_its_highest_power_first():
    assert polynomial(COEFFICIENTS, 0.17) == pytest.approx(np.poly1d(COEFFICIENTS)(0.17))


def test_a_fit_finds_the_polynomial_again():
    changes = np.linspace(0.02, 0.31, 30)
    found = fit(list(changes), list(np.poly1d(COEFFICIENTS)(changes)))
    assert found == pytest.approx(COEFFICIENTS, rel=1e-5)


def test_a_fit_of_few_values_has_a_lower_degree():
    assert fit([0.1, 0.2], [0.3, 0.5]) == pytest.approx([2.0, 0.1])
    assert fit([0.1, 0.1], [0.2, 0.4]) == pytest.approx([0.3]) and fit([], []) == [0.0]


def test_calibration_prints_coefficients_that_give_what_was_measured():
    """Inputs of 1, 1.1, 1.3 …, outputs of 2, 2.4 …: what is printed maps the changes of one to those of the other."""
    entered, left = (torch.tensor(row) for row in ([1.0, 1.1, 1.3, 1.7, 2.0], [2.0, 2.4, 3.0, 3.1, 4.0]))
    walk, blocks = Walk([0] * 5), Blocks(1)
    calibration = CoefficientCalibration(walk)
    stacks = [
        blocks.on(torch.zeros(1, 1, 1), [out.view(1, 1, 1)], modulated=one.view(1, 1, 1))
        for one, out in zip(entered, left, strict=True)
    ]
    made = walked(calibration, walk, stacks)
    assert torch.equal(torch.cat(made).flatten(), left) and blocks.runs == [5]
    flag, numbers = calibration.report()[0].split(" ")
    changes = ((entered[1:] - entered[:-1]) / entered[:-1]).tolist()
    outcomes = ((left[1:] - left[:-1]) / left[:-1]).tolist()
    assert flag == "--step_cache_coefficients"
    fitted = [polynomial([float(number) for number in numbers.split(",")], change) for change in changes]
    assert fitted == pytest.approx(outcomes, abs=1e-3)
