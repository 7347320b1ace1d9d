"""Optimizers by name, their arguments, and what a person is told when one cannot be had."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from engine.contract.errors import OptionError
from engine.training.optimizers import create_optimizer
from engine.training.schedules import Schedule, create_scheduler


def groups() -> list[dict]:
    return [{"params": [torch.nn.Parameter(torch.ones(4, 4))], "lr": 1e-3, "name": "unet"}]


class ToyScheduleFree(torch.optim.SGD):
    """Stands for the schedule-free family: found by its class name, switched by train() and eval()."""

    mode = ""

    def train(self) -> None:
        self.mode = "train"

    def eval(self) -> None:
        self.mode = "eval"


@pytest.mark.parametrize("name", ["", "AdamW", "adamw"])
def test_adamw_and_the_empty_name(name: str) -> None:
    """The reference's help promises AdamW for an empty name; its look-up fails."""
    built = create_optimizer(name, ["weight_decay=0.1", "betas=0.9,0.99"], groups(), lr=1e-3)
    assert type(built.optimizer) is torch.optim.AdamW
    assert built.optimizer.param_groups[0]["betas"] == (0.9, 0.99)
    assert built.description == "torch.optim.adamw.AdamW(weight_decay=0.1,betas=(0.9, 0.99))"
    assert not built.schedule_free and built.forced_schedule is None


@pytest.mark.parametrize("name", ["SGD", "sgd", "torch.optim.SGD"])
def test_any_class_of_torch_or_by_path(name: str) -> None:
    built = create_optimizer(name, ["momentum=0.9"], groups(), lr=0.5)
    assert type(built.optimizer) is torch.optim.SGD and built.optimizer.param_groups[0]["momentum"] == 0.9


def test_schedule_free_is_recognised_and_switched() -> None:
    built = create_optimizer(f"{__name__}.ToyScheduleFree", [], groups(), lr=0.1)
    assert built.schedule_free
    built.eval()
    assert built.optimizer.mode == "eval"
    built.train()
    assert built.optimizer.mode == "train"


def test_adafactor_takes_over_the_schedule_unless_told_otherwise() -> None:
    parameters = groups()
    built = create_optimizer("Adafactor", [], parameters, lr=1e-3, lr_scheduler="cosine")
    assert built.forced_schedule == "adafactor:0.001" and "cosine" in built.notes[0]
    scheduler = create_scheduler(Schedule(name=built.forced_schedule), built.optimizer, total_steps=10)
    assert scheduler.get_last_lr() == [0.001]
    (parameter,) = parameters[0]["params"]
    before = parameter.detach().clone()
    for _ in range(3):
        parameter.grad = torch.ones_like(parameter)
        built.optimizer.step()
        scheduler.step()
    assert not torch.equal(parameter, before) and scheduler.get_last_lr()[0] > 0
    fixed = create_optimizer(
        "adafactor", ["relative_step=False", "scale_parameter=False"], groups(), lr=1e-3, max_grad_norm=1.0
    )
    assert fixed.forced_schedule is None and fixed.optimizer.param_groups[0]["lr"] == 1e-3
    assert any("max_grad_norm" in note for note in fixed.notes)
    warm = create_optimizer("adafactor", ["relative_step=False", "warmup_init=True"], groups(), lr=1e-3)
    assert warm.forced_schedule and "warmup_init" in warm.notes[0]


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is not None and torch.cuda.is_available(), reason="it can be had here"
)
def test_eight_bit_without_its_package_or_gpu_names_the_way_out() -> None:
    with pytest.raises(OptionError) as caught:
        create_optimizer("AdamW8bit", [], groups(), lr=1e-3)
    assert "AdamW8bit" in caught.value.message and "--optimizer_type AdamW" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("AdamW", ["weight_decey=0.1"], "weight_decay"),
        ("AdamW", ["weight_decay"], "key=value"),
        ("AdamW", ["weight_decay=abc"], "quotes"),
        ("AdamW", ["betas=5"], "betas=5"),
        ("AdamW", ["lr=1"], "own option"),
        ("AdamWW", [], "AdamW?"),
        ("no_such_package.Adam", [], "no_such_package"),
        ("torch.nn.Linear", [], "not an optimizer"),
    ],
)
def test_wrong_names_and_arguments(name: str, arguments: list[str], told: str) -> None:
    with pytest.raises(OptionError) as caught:
        create_optimizer(name, arguments, groups(), lr=1e-3)
    shown = f"{caught.value.message} {caught.value.hint}"
    assert told in shown or (told == "betas=5" and "refuses" in shown)
