"""Learning-rate schedules: every `--lr_scheduler` of musubi-tuner as a pure function of the step.

A schedule gives the factor by which each group's rate is multiplied at a step (0 = the first). The numbers are those
of transformers and diffusers, whose names these are; REX is arXiv 2107.04197. Knows nothing of processes: a step is
an optimizer step, whatever the number of GPUs. Given up: schedules that need a validation loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from ..contract.errors import OptionError
from ..contract.wording import did_you_mean
from .arguments import check_names, find_class, parse_arguments

Factor = Callable[[int], float]

# schedule -> what --lr_scheduler_args may set for it
_EXTRAS: dict[str, tuple[str, ...]] = {
    "constant": (),
    "constant_with_warmup": (),
    "linear": (),
    "cosine": ("num_cycles",),
    "cosine_with_restarts": (),
    "polynomial": ("lr_end",),
    "inverse_sqrt": (),
    "cosine_with_min_lr": ("min_lr",),
    "warmup_stable_decay": ("warmup_type", "decay_type"),
    "piecewise_constant": ("step_rules",),
    "rex": ("rex_alpha", "rex_beta"),
}
SCHEDULES = (*_EXTRAS, "adafactor")
_RAMPS: dict[str, Callable[[float], float]] = {
    "linear": lambda part: part,
    "cosine": lambda part: 0.5 * (1.0 - math.cos(math.pi * part)),
    "1-sqrt": lambda part: 1.0 - math.sqrt(1.0 - part),
}
_FALLS: dict[str, Callable[[float], float]] = {
    "linear": lambda part: 1.0 - part,
    "cosine": lambda part: _wave(part, 0.5),
    "1-sqrt": lambda part: 1.0 - math.sqrt(part),
}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The options about the learning rate over time, as given.

    `warmup` and `decay` are whole steps, a ratio below 1, or a text such as "5%". `class_path` is `--lr_scheduler_type`
    and wins over `name`.
    """

    name: str = "constant"
    warmup: int | float | str = 0
    decay: int | float | str = 0
    cycles: int = 1
    power: float = 1.0
    timescale: int | None = None
    min_ratio: float | None = None
    arguments: tuple[str, ...] = ()
    class_path: str = ""


class HeldRate:
    """Stands where a schedule would: for schedule-free optimizers, whose rate nobody moves."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        """The rate stays."""

    def get_last_lr(self) -> list[float]:
        """With the warm-up that some schedule-free optimizers have of their own."""
        return [group.get("scheduled_lr", group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take over."""


def steps_of(flag: str, value: int | float | str | None, total_steps: int) -> int:
    """Whole steps from a number of steps, a ratio of the training below 1, or a percentage such as "5%"."""
    if value is None:
        return 0
    try:
        if isinstance(value, str):
            text = value.strip()
            number = float(text[:-1]) / 100.0 if text.endswith("%") else float(text)
            ratio = text.endswith("%") or number < 1
        else:
            number, ratio = float(value), isinstance(value, float) and value < 1
    except ValueError as error:
        raise OptionError(f"{flag} {value} is not a number of steps.", "E.g. 100, 0.05 or 5%.") from error
    if number < 0 or not math.isfinite(number) or (ratio and number > 1):
        raise OptionError(f"{flag} {value} lies outside the training.", "E.g. 100, 0.05 or 5%.")
    if not ratio and number != int(number):
        raise OptionError(f"{flag} {value} is neither whole steps nor a ratio below 1.", "E.g. 100, 0.05 or 5%.")
    return int(number * total_steps) if ratio else int(number)


def create_scheduler(
    schedule: Schedule, optimizer: torch.optim.Optimizer, *, total_steps: int, schedule_free: bool = False
) -> LRScheduler | HeldRate:
    """The schedule of an optimizer for a training of `total_steps` optimizer steps. OptionError says what to change."""
    if schedule_free:
        return HeldRate(optimizer)
    if schedule.class_path:
        return _from_class(schedule, optimizer)
    if schedule.name.split(":")[0] == "adafactor":
        return _adafactor(schedule, optimizer)
    rate = float(optimizer.defaults.get("lr") or 0.0)
    return LambdaLR(optimizer, factor(schedule, total_steps=total_steps, learning_rate=rate))


def take_rates(scheduler: LRScheduler | HeldRate, optimizer: torch.optim.Optimizer, rates: Sequence[float]) -> None:
    """Go on with other full learning rates, one for each group. OptionError where the schedule cannot."""
    if not isinstance(scheduler, LambdaLR):
        raise OptionError(
            f"--learning_rate cannot be changed in the middle of a training with {type(scheduler).__name__}.",
            "Give the one that it started with.",
        )
    scheduler.base_lrs = list(rates)
    for group, rate, shape in zip(optimizer.param_groups, rates, scheduler.lr_lambdas, strict=True):
        group["initial_lr"], group["lr"] = rate, rate * shape(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]


def rates_by_name(optimizer: Any, scheduler: Any) -> dict[str, float]:
    """The rate of each group, as it is logged."""
    values = {}
    for number, (group, rate) in enumerate(zip(optimizer.param_groups, scheduler.get_last_lr(), strict=False)):
        name = group.get("name", f"group{number}")
        values[f"lr/{name}"] = float(rate)
        if "d" in group and group.get("lr") is not None:  # Prodigy and its kin find d by themselves
            values[f"lr/d*lr/{name}"] = float(group["d"]) * float(group["lr"])
    return values


def factor(schedule: Schedule, *, total_steps: int, learning_rate: float = 1.0) -> Factor:
    """The factor on the learning rate as a function of the step; `learning_rate` matters where an end rate is given."""
    name = schedule.name
    if name not in _EXTRAS:
        hint = did_you_mean(name, SCHEDULES, f"Choose one of {', '.join(SCHEDULES)}.")
        raise OptionError(f"--lr_scheduler {name} is unknown.", hint)
    extras = parse_arguments("--lr_scheduler_args", schedule.arguments)
    for key in extras:
        if key not in _EXTRAS[name]:
            known = ", ".join(_EXTRAS[name]) or "none"
            raise OptionError(f"--lr_scheduler_args: {name} has no argument {key!r}.", f"It takes: {known}.")
    warmup = steps_of("--lr_warmup_steps", schedule.warmup, total_steps)
    if name in ("constant", "piecewise_constant"):
        _no_warmup(name, warmup)
        return (lambda step: 1.0) if name == "constant" else _piecewise(extras)
    if name == "rex":
        return _rex(schedule, warmup, total_steps, extras)
    if name == "warmup_stable_decay":
        return _stable(schedule, warmup, total_steps, extras)
    after = _after_warmup(schedule, warmup, total_steps, learning_rate, extras)
    return lambda step: step / max(1, warmup) if step < warmup else after(step)


def _no_warmup(name: str, warmup: int) -> None:
    if warmup:
        raise OptionError(
            f"--lr_scheduler {name} has no warm-up, but --lr_warmup_steps is {warmup}.",
            "Choose constant_with_warmup, or set --lr_warmup_steps 0.",
        )


def _after_warmup(schedule: Schedule, warmup: int, total: int, rate: float, extras: dict[str, Any]) -> Factor:
    """What follows a linear warm-up from 0."""
    name = schedule.name
    span = max(1, total - warmup)

    def part(step: int) -> float:
        return (step - warmup) / span

    if name == "constant_with_warmup":
        return lambda step: 1.0
    if name == "linear":
        return lambda step: max(0.0, (total - step) / span)
    if name == "inverse_sqrt":
        timescale = schedule.timescale or warmup or 10_000
        return lambda step: 1.0 / math.sqrt((step + timescale - warmup) / timescale)
    if name == "cosine_with_restarts":
        return lambda step: _restarting(part(step), schedule.cycles)
    if name == "polynomial":
        return _polynomial(schedule, warmup, total, rate, float(extras.get("lr_end", 1e-7)))
    if name == "cosine":
        cycles, least = float(extras.get("num_cycles", 0.5)), 0.0
    else:
        cycles, least = schedule.cycles / 2, _least(schedule, rate, extras)
    return lambda step: max(0.0, _wave(part(step), cycles) * (1 - least) + least)


def _wave(part: float, cycles: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * cycles * 2.0 * part))


def _restarting(part: float, cycles: int) -> float:
    return 0.0 if part >= 1.0 else max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((cycles * part) % 1.0))))


def _least(schedule: Schedule, rate: float, extras: dict[str, Any]) -> float:
    if schedule.min_ratio is not None and "min_lr" in extras:
        raise OptionError("--lr_scheduler_min_lr_ratio and --lr_scheduler_args min_lr exclude each other.")
    if "min_lr" in extras:
        return float(extras["min_lr"]) / rate if rate else 0.0
    if schedule.min_ratio is None:
        raise OptionError("--lr_scheduler cosine_with_min_lr needs --lr_scheduler_min_lr_ratio.", "E.g. 0.1.")
    return schedule.min_ratio


def _polynomial(schedule: Schedule, warmup: int, total: int, rate: float, end: float) -> Factor:
    if rate and end >= rate:
        raise OptionError(
            f"--lr_scheduler polynomial falls to {end:g}, but --learning_rate {rate:g} is not above that.",
            "Set a lower lr_end in --lr_scheduler_args.",
        )
    least = end / rate if rate else 0.0

    def after(step: int) -> float:
        remaining = 1.0 - min(1.0, (step - warmup) / max(1, total - warmup))
        return least + (1.0 - least) * remaining**schedule.power if step <= total else least

    return after


def _stable(schedule: Schedule, warmup: int, total: int, extras: dict[str, Any]) -> Factor:
    """Warm-up, plateau, decay; the decay takes `--lr_decay_steps`."""
    decay = steps_of("--lr_decay_steps", schedule.decay, total)
    stable = total - warmup - decay
    if stable < 0:
        raise OptionError(
            f"--lr_warmup_steps {warmup} and --lr_decay_steps {decay} exceed the {total} steps of the training."
        )
    rise, fall = str(extras.get("warmup_type", "linear")), str(extras.get("decay_type", "cosine"))
    for key, kind in (("warmup_type", rise), ("decay_type", fall)):
        if kind not in _FALLS:
            raise OptionError(f"--lr_scheduler_args {key}={kind!r} is unknown.", f"One of {', '.join(_FALLS)}.")
    least = schedule.min_ratio or 0.0

    def value(step: int) -> float:
        if step < warmup:
            height = _RAMPS[rise](step / warmup)
        elif step < warmup + stable:
            return 1.0
        elif step < total:
            part = (step - warmup - stable) / decay
            height = _wave(part, schedule.cycles / 2) if fall == "cosine" else _FALLS[fall](part)
        else:
            return least
        return max(0.0, height * (1.0 - least) + least)

    return value


def _piecewise(extras: dict[str, Any]) -> Factor:
    """`step_rules='1:10,0.1:20,0.01'`: factor 1 before step 10, 0.1 before step 20, then 0.01."""
    text = extras.get("step_rules")
    if not isinstance(text, str):
        raise OptionError(
            "--lr_scheduler piecewise_constant needs its rules.",
            "E.g. --lr_scheduler_args \"step_rules='1:10,0.1:20,0.01'\"",
        )
    *rules, last = text.split(",")
    try:
        steps = sorted((int(step), float(value)) for value, step in (rule.split(":") for rule in rules))
        final = float(last)
    except ValueError as error:
        raise OptionError(
            f"--lr_scheduler_args step_rules={text!r} cannot be read.", "E.g. '1:10,0.1:20,0.01'"
        ) from error
    return lambda step: next((value for before, value in steps if step < before), final)


def _rex(schedule: Schedule, warmup: int, total: int, extras: dict[str, Any]) -> Factor:
    """Reflected exponential: starts at the full rate and bends down to the least one, after a linear warm-up."""
    if warmup > total:
        raise OptionError(f"--lr_warmup_steps {warmup} exceeds the {total} steps of the training.")
    least = 0.01 if schedule.min_ratio is None else schedule.min_ratio
    alpha, beta = float(extras.get("rex_alpha", 0.1)), float(extras.get("rex_beta", 0.9))
    span = total - warmup

    def value(step: int) -> float:
        if step < warmup:
            return least + (1.0 - least) * step / warmup
        if step >= total:
            return least
        remaining = (total - step) / span
        return least + (1.0 - least) * remaining / (alpha + beta * remaining)

    return value


def _from_class(schedule: Schedule, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """`--lr_scheduler_type`: a class of torch.optim.lr_scheduler, or any dotted path."""
    wanted = find_class("--lr_scheduler_type", schedule.class_path, home="torch.optim.lr_scheduler")
    if issubclass(wanted, ReduceLROnPlateau):
        raise OptionError("--lr_scheduler_type ReduceLROnPlateau needs a validation loss, which is not available.")
    arguments = parse_arguments("--lr_scheduler_args", schedule.arguments)
    check_names("--lr_scheduler_args", arguments, wanted, own=("optimizer",))
    try:
        made: LRScheduler = wanted(optimizer, **arguments)
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"--lr_scheduler_type {schedule.class_path} cannot be made: {error}.", "Set --lr_scheduler_args."
        ) from error
    return made


def _adafactor(schedule: Schedule, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """`adafactor:0.001`: reports the rate that Adafactor chooses by itself, and the given one before the first step."""
    if type(optimizer).__name__ != "Adafactor":
        raise OptionError("--lr_scheduler adafactor only works with --optimizer_type Adafactor.")
    _no_warmup("adafactor", steps_of("--lr_warmup_steps", schedule.warmup, 1))
    _, _, text = schedule.name.partition(":")
    try:
        first = float(text or 0.0)
    except ValueError as error:
        raise OptionError(f"--lr_scheduler {schedule.name}: {text!r} is not a rate.", "E.g. adafactor:0.001") from error
    from transformers.optimization import AdafactorSchedule  # slow to import, and rarely wanted

    made: LRScheduler = AdafactorSchedule(optimizer, first)
    return made
