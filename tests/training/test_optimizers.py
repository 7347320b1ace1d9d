"""Optimizers by name, their arguments, and what a person is told when one cannot be had."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from engine.contract.errors import OptionError
from engine.training import optimizers
from engine.training.came import CAME
from engine.training.lion import Lion
from engine.training.optimizers import choose_optimizer
from engine.training.prodigy import Prodigy
from engine.training.schedule_free import AdamWScheduleFree
from engine.training.schedules import Schedule, create_scheduler, rates_by_name


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
    built = choose_optimizer(name, ["weight_decay=0.1", "betas=0.9,0.99"], lr=1e-3).build(groups())
    assert type(built.optimizer) is torch.optim.AdamW
    assert built.optimizer.param_groups[0]["betas"] == (0.9, 0.99)
    assert built.description == "torch.optim.adamw.AdamW(weight_decay=0.1,betas=(0.9, 0.99))"
    assert not built.schedule_free and built.forced_schedule is None


@pytest.mark.parametrize("name", ["SGD", "sgd", "torch.optim.SGD"])
def test_any_class_of_torch_or_by_path(name: str) -> None:
    built = choose_optimizer(name, ["momentum=0.9"], lr=0.5).build(groups())
    assert type(built.optimizer) is torch.optim.SGD and built.optimizer.param_groups[0]["momentum"] == 0.9


def test_schedule_free_is_recognised_and_switched() -> None:
    built = choose_optimizer(f"{__name__}.ToyScheduleFree", [], lr=0.1).build(groups())
    assert built.schedule_free
    built.eval()
    assert built.optimizer.mode == "eval"
    built.train()
    assert built.optimizer.mode == "train"


def test_adafactor_takes_over_the_schedule_unless_told_otherwise() -> None:
    parameters = groups()
    built = choose_optimizer("Adafactor", [], lr=1e-3, lr_scheduler="cosine").build(parameters)
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
    fixed = choose_optimizer(
        "adafactor", ["relative_step=False", "scale_parameter=False"], lr=1e-3, max_grad_norm=1.0
    ).build(groups())
    assert fixed.forced_schedule is None and fixed.optimizer.param_groups[0]["lr"] == 1e-3
    assert any("max_grad_norm" in note for note in fixed.notes)
    warm = choose_optimizer("adafactor", ["relative_step=False", "warmup_init=True"], lr=1e-3).build(groups())
    assert warm.forced_schedule and "warmup_init" in warm.notes[0]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("prodigy", "engine.training.prodigy.Prodigy"),
        ("CAME", "engine.training.came.CAME"),
        ("lion", "engine.training.lion.Lion"),
        ("AdamWScheduleFree", "engine.training.schedule_free.AdamWScheduleFree"),
        ("muon", "torch.optim.Muon"),
        ("torch.optim.adamw", "torch.optim.adamw.AdamW"),
    ],
)
def test_names_in_any_capitals(name: str, wanted: str) -> None:
    built = choose_optimizer(name, [], lr=1.0).build(groups())
    assert built.class_name == wanted


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("prodigyopt.Prodigy", Prodigy),
        ("schedulefree.AdamWScheduleFree", AdamWScheduleFree),
        ("came_pytorch.CAME", CAME),
        ("lion_pytorch.Lion", Lion),
    ],
)
def test_guides_paths_work_without_their_packages_and_with_them(
    monkeypatch: pytest.MonkeyPatch, path: str, wanted: type
) -> None:
    package, _, name = path.partition(".")
    monkeypatch.setattr(optimizers, "_is_installed", lambda asked: False)
    chosen = choose_optimizer(path, ["weight_decay=0.01"], lr=1.0)
    assert chosen.wanted is wanted and package in chosen.notes[0]
    module = ModuleType(package)
    theirs = type(name, (wanted,), {})
    setattr(module, name, theirs)
    monkeypatch.setitem(sys.modules, package, module)
    monkeypatch.setattr(optimizers, "_is_installed", lambda asked: asked == package)
    assert choose_optimizer(path, [], lr=1.0).wanted is theirs


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("AdamW8bit", "bitsandbytes"),
        ("PagedAdamW", "bitsandbytes"),
        ("DAdaptAdam", "dadaptation"),
        ("ProdigyPlusScheduleFree", "prodigy-plus-schedule-free"),
        ("pytorch_optimizer.Ranger21", "pytorch-optimizer"),
    ],
)
def test_a_missing_package_is_one_error_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    for module in ("bitsandbytes", "bitsandbytes.optim", "dadaptation", "prodigyplus", "pytorch_optimizer"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(OptionError) as caught:
        choose_optimizer(name, [], lr=1e-3)
    assert f"--optimizer_type {name}:" in caught.value.message
    assert caught.value.hint.startswith(f"Install it with: python -m env_bootstrap add {package} (or choose")


def test_a_package_of_the_person_s_own_is_installed_with_pip() -> None:
    with pytest.raises(OptionError) as caught:
        choose_optimizer("no_such_package.Best", [], lr=1e-3)
    assert f'"{sys.executable}" -m pip install no_such_package (or' in caught.value.hint


def test_what_cannot_take_a_step_is_refused_before_there_is_anything_to_train() -> None:
    for name in ("LBFGS", "SparseAdam"):  # one wants to run the model by itself, one wants sparse gradients
        with pytest.raises(OptionError, match=f"{name} cannot take a step"):
            choose_optimizer(name, [], lr=1e-3)


def test_prodigy_refuses_different_rates_at_once_and_logs_what_it_found() -> None:
    with pytest.raises(OptionError, match="one learning rate for all"):
        choose_optimizer("Prodigy", [], lr=1.0, rates=[1.0, 4.0])
    chosen = choose_optimizer("Prodigy", [], lr=1e-4)
    assert "--learning_rate 0.0001" in chosen.notes[0] and not choose_optimizer("Prodigy", [], lr=1.0).notes
    parameters = groups()
    parameters[0]["lr"] = 0.5
    built = choose_optimizer("Prodigy", ["d0=0.01"], lr=0.5).build(parameters)
    scheduler = create_scheduler(Schedule(), built.optimizer, total_steps=3)
    assert rates_by_name(built.optimizer, scheduler) == {"lr/unet": 0.5, "lr/d*lr/unet": 0.005}


def test_schedule_free_has_its_own_warm_up_and_says_so() -> None:
    chosen = choose_optimizer("AdamWScheduleFree", ["warmup_steps=4"], lr=1.0, lr_scheduler="cosine")
    assert "--lr_scheduler cosine has no effect" in chosen.notes[0] and "warmup_steps" in chosen.notes[0]
    parameters = groups()
    parameters[0]["lr"] = 1.0
    built = chosen.build(parameters)
    scheduler = create_scheduler(Schedule(), built.optimizer, total_steps=9, schedule_free=built.schedule_free)
    built.train()
    rates = []
    for _ in range(5):
        parameters[0]["params"][0].grad = torch.ones(4, 4)
        built.optimizer.step()
        rates += scheduler.get_last_lr()
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_showing_the_average_does_not_disturb_what_is_trained() -> None:
    """The package computes one from the other, so that each look costs a rounding error."""
    parameters = groups()
    (weight,) = parameters[0]["params"]
    built = choose_optimizer("AdamWScheduleFree", [], lr=0.1).build(parameters)
    built.train()
    for _ in range(5):
        weight.grad = torch.rand(4, 4, generator=torch.Generator().manual_seed(3))
        built.optimizer.step()
    trained = weight.detach().clone()
    built.eval()
    shown = weight.detach().clone()
    assert not torch.equal(shown, trained)
    built.eval()
    assert torch.equal(weight, shown)
    built.train()
    assert torch.equal(weight, trained)
    built.eval()
    with pytest.raises(RuntimeError, match="train"):
        built.optimizer.step()


def test_bf16_weights_are_refused_where_looking_at_the_average_would_round_them() -> None:
    choose_optimizer("AdamWScheduleFree", [], lr=0.1, full_bf16=True)
    with pytest.raises(OptionError, match="ToyScheduleFree would lose") as caught:
        choose_optimizer(f"{__name__}.ToyScheduleFree", [], lr=0.1, full_bf16=True)
    assert "AdamWScheduleFree" in caught.value.hint


class TakesAnything(torch.optim.SGD):
    """Many packages' classes pass on what they do not know."""

    def __init__(self, params, lr=1e-3, weight_decay=0.0, **others) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay)


def test_a_misspelt_argument_is_found_where_any_is_taken() -> None:
    choose_optimizer(f"{__name__}.TakesAnything", ["foreach=False"], lr=1.0)
    with pytest.raises(OptionError) as caught:
        choose_optimizer(f"{__name__}.TakesAnything", ["weight_decey=0.1"], lr=1.0)
    assert "weight_decay" in caught.value.hint


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
        ("Prodgy", [], "Prodigy?"),
        ("Prodigy", ["d_coeff=2"], "d_coef?"),
        ("CAME", ["betas=0.9,0.99"], "three numbers"),
        ("Lion", ["betas=2,0.9"], "from 0 to 1"),
        ("AdamWScheduleFree", ["betas=0,0.9"], "above 0"),
        ("AdamWScheduleFree", ["warmup_steps='x'"], "refuses"),
    ],
)
def test_wrong_names_and_arguments(name: str, arguments: list[str], told: str) -> None:
    with pytest.raises(OptionError) as caught:
        choose_optimizer(name, arguments, lr=1e-3)
    shown = f"{caught.value.message} {caught.value.hint}"
    assert told in shown or (told == "betas=5" and "refuses" in shown)
