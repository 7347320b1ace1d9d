"""Learning-rate schedules against transformers' and diffusers', and against what their options promise."""

from __future__ import annotations

import pytest
import torch
from diffusers.optimization import get_piecewise_constant_schedule
from transformers import optimization

from engine.contract.errors import OptionError
from engine.training.schedules import HeldRate, Schedule, create_scheduler, factor, steps_of

RATE, TOTAL, WARMUP = 1e-3, 60, 7


def optimizer(rate: float = RATE) -> torch.optim.Optimizer:
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def curve(scheduler, steps: int = TOTAL + 5) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def theirs(name: str, **values):
    return getattr(optimization, name)(optimizer(), **values)


BOTH = {"num_warmup_steps": WARMUP, "num_training_steps": TOTAL}
CASES = [
    ({"name": "constant"}, lambda: theirs("get_constant_schedule")),
    (
        {"name": "constant_with_warmup", "warmup": WARMUP},
        lambda: theirs("get_constant_schedule_with_warmup", num_warmup_steps=WARMUP),
    ),
    ({"name": "linear", "warmup": WARMUP}, lambda: theirs("get_linear_schedule_with_warmup", **BOTH)),
    ({"name": "cosine", "warmup": WARMUP}, lambda: theirs("get_cosine_schedule_with_warmup", **BOTH)),
    (
        {"name": "cosine_with_restarts", "warmup": WARMUP, "cycles": 3},
        lambda: theirs("get_cosine_with_hard_restarts_schedule_with_warmup", **BOTH, num_cycles=3),
    ),
    (
        {"name": "polynomial", "warmup": WARMUP, "power": 2.0},
        lambda: theirs("get_polynomial_decay_schedule_with_warmup", **BOTH, power=2.0),
    ),
    (
        {"name": "polynomial", "arguments": ("lr_end=1e-4",)},
        lambda: theirs(
            "get_polynomial_decay_schedule_with_warmup", num_warmup_steps=0, num_training_steps=TOTAL, lr_end=1e-4
        ),
    ),
    (
        {"name": "inverse_sqrt", "warmup": WARMUP},
        lambda: theirs("get_inverse_sqrt_schedule", num_warmup_steps=WARMUP),
    ),
    (
        {"name": "inverse_sqrt", "timescale": 20},
        lambda: theirs("get_inverse_sqrt_schedule", num_warmup_steps=0, timescale=20),
    ),
    (
        {"name": "cosine_with_min_lr", "warmup": WARMUP, "min_ratio": 0.1, "cycles": 1},
        lambda: theirs("get_cosine_with_min_lr_schedule_with_warmup", **BOTH, min_lr_rate=0.1, num_cycles=0.5),
    ),
    (
        {"name": "cosine_with_min_lr", "warmup": WARMUP, "arguments": ("min_lr=2e-4",)},
        lambda: theirs("get_cosine_with_min_lr_schedule_with_warmup", **BOTH, min_lr=2e-4),
    ),
    (
        {"name": "warmup_stable_decay", "warmup": WARMUP, "decay": 20, "min_ratio": 0.05},
        lambda: theirs("get_wsd_schedule", **BOTH, num_decay_steps=20, min_lr_ratio=0.05),
    ),
    (
        {
            "name": "warmup_stable_decay",
            "warmup": WARMUP,
            "decay": 20,
            "arguments": ("warmup_type='1-sqrt'", "decay_type='linear'"),
        },
        lambda: theirs("get_wsd_schedule", **BOTH, num_decay_steps=20, warmup_type="1-sqrt", decay_type="linear"),
    ),
    (
        {"name": "piecewise_constant", "arguments": ("step_rules='1:10,0.1:20,0.01:30,0.005'",)},
        lambda: get_piecewise_constant_schedule(optimizer(), "1:10,0.1:20,0.01:30,0.005"),
    ),
]


@pytest.mark.parametrize(("values", "reference"), CASES, ids=lambda value: "" if callable(value) else str(value)[:60])
def test_curve_equals_the_library_of_that_name(values, reference) -> None:
    ours = create_scheduler(Schedule(**values), optimizer(), total_steps=TOTAL)
    assert curve(ours) == pytest.approx(curve(reference()), rel=1e-6, abs=1e-12)


def test_rex_starts_full_bends_down_and_ends_at_the_least() -> None:
    value = factor(Schedule(name="rex", min_ratio=0.02), total_steps=100)
    assert value(0) == 1.0 and value(100) == 0.02 and value(500) == 0.02
    assert value(50) == pytest.approx(0.02 + 0.98 * 0.5 / (0.1 + 0.9 * 0.5))
    assert all(value(step) > value(step + 1) for step in range(100))
    assert factor(Schedule(name="rex"), total_steps=10)(10) == 0.01
    shaped = factor(Schedule(name="rex", arguments=("rex_alpha=0.5", "rex_beta=0.5")), total_steps=100)
    assert shaped(50) == pytest.approx(0.01 + 0.99 * 0.5 / 0.75)


def test_rex_warm_up_does_not_spike_at_the_first_step() -> None:
    """The reference's first warm-up step takes a place in the decay curve."""
    value = factor(Schedule(name="rex", warmup=10), total_steps=100)
    rising = [value(step) for step in range(11)]
    assert rising == sorted(rising) and rising[0] == 0.01 and rising[10] == 1.0


def test_every_group_keeps_its_ratio() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (1e-3, 4e-3)]
    for name in ("rex", "cosine", "linear"):
        scheduler = create_scheduler(Schedule(name=name, warmup=3), torch.optim.AdamW(groups, lr=1e-3), total_steps=20)
        for _ in range(8):
            scheduler.optimizer.step()
            scheduler.step()
        one, two = scheduler.get_last_lr()
        assert two == pytest.approx(4 * one)


@pytest.mark.parametrize(
    ("given", "steps"),
    [(0, 0), (None, 0), (12, 12), ("12", 12), (0.1, 20), ("0.1", 20), ("5%", 10), ("100%", 200), (1, 1), ("1", 1)],
)
def test_steps_ratios_and_percentages(given, steps: int) -> None:
    assert steps_of("--lr_warmup_steps", given, 200) == steps


@pytest.mark.parametrize("given", ["ten", "5 %x", -3, "150%", 1.5, "-1", "nan"])
def test_other_step_counts_are_refused(given) -> None:
    with pytest.raises(OptionError, match="--lr_warmup_steps"):
        steps_of("--lr_warmup_steps", given, 200)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"name": "cosin"}, "cosine"),
        ({"name": "constant", "warmup": 5}, "constant_with_warmup"),
        ({"name": "cosine_with_min_lr"}, "min_lr_ratio"),
        ({"name": "warmup_stable_decay", "warmup": 50, "decay": 20}, "exceed"),
        ({"name": "piecewise_constant"}, "step_rules"),
        ({"name": "cosine", "arguments": ("num_cycle=1",)}, "num_cycles"),
        ({"name": "linear", "arguments": ("x",)}, "key=value"),
        ({"name": "polynomial", "arguments": ("lr_end=1",)}, "lr_end"),
        ({"name": "adafactor:0.1"}, "Adafactor"),
        ({"class_path": "StepLR"}, "step_size"),
        ({"class_path": "StepLR", "arguments": ("step_sise=3",)}, "step_size"),
        ({"class_path": "ReduceLROnPlateau"}, "validation"),
        ({"class_path": "no_such_package.Thing"}, "no_such_package"),
    ],
)
def test_wrong_options_are_told_with_the_way_out(values, told: str) -> None:
    with pytest.raises(OptionError) as caught:
        create_scheduler(Schedule(**values), optimizer(), total_steps=TOTAL)
    assert told in f"{caught.value.message} {caught.value.hint}"


def test_a_class_by_name_or_path_and_schedule_free() -> None:
    for path in ("StepLR", "torch.optim.lr_scheduler.StepLR"):
        scheduler = create_scheduler(
            Schedule(class_path=path, arguments=("step_size=2", "gamma=0.5")), optimizer(), total_steps=TOTAL
        )
        assert curve(scheduler, 5) == pytest.approx([RATE, RATE, RATE / 2, RATE / 2, RATE / 4])
    held = create_scheduler(Schedule(name="cosine"), optimizer(), total_steps=TOTAL, schedule_free=True)
    assert isinstance(held, HeldRate) and curve(held) == [RATE] * (TOTAL + 5)


def test_learning_rate_zero_works_with_every_schedule() -> None:
    for values, _ in CASES:
        assert set(curve(create_scheduler(Schedule(**values), optimizer(0.0), total_steps=TOTAL))) == {0.0}
