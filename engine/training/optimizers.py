"""The optimizer that a person names, and how it is to be treated.

    AdamW, SGD, Muon, Adafactor …         PyTorch's own; Adafactor is transformers'
    Prodigy, CAME, Lion, AdamWScheduleFree   the engine's own, with the arguments and numbers of the packages they are
                                          known from
    AdamW8bit, PagedAdamW8bit, Lion8bit … bitsandbytes'
    package.Class                         any class that can be imported

`choose_optimizer` finds the class and lets it take a step on four numbers, so that whatever it refuses shows before
there is anything to train; what it returns is built for parameter groups. Knows nothing of what these belong to.
Differences from musubi-tuner on purpose: an empty `--optimizer_type` is AdamW, as its help always said, arguments that
the class does not have are an error that names the nearest one, and the path of a package that is not installed stands
for the engine's own optimizer of that name, which is said.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..contract.errors import OptionError
from ..contract.packages import how_to_install
from .arguments import check_names, find_class, parse_arguments
from .came import CAME
from .lion import Lion
from .optimizer_offload import OptimizerOffload
from .parameters import parameters_of
from .prodigy import Prodigy
from .rounding import Bf16Weights
from .schedule_free import AdamWScheduleFree

_FLAG = "--optimizer_args"
# name in small letters -> the engine's own
OWN: dict[str, type] = {
    "prodigy": Prodigy,
    "came": CAME,
    "lion": Lion,
    "adamwschedulefree": AdamWScheduleFree,
}
# path by which guides name an optimizer of a package -> the engine's own
_THEIRS: dict[str, type] = {
    "prodigyopt.prodigy": Prodigy,
    "came_pytorch.came": CAME,
    "lion_pytorch.lion": Lion,
    "schedulefree.adamwschedulefree": AdamWScheduleFree,
}
# name in small letters -> where it is
_ELSEWHERE = {
    "dadaptadam": "dadaptation.DAdaptAdam",
    "dadaptlion": "dadaptation.DAdaptLion",
    "prodigyplusschedulefree": "prodigyplus.ProdigyPlusScheduleFree",
    "radamschedulefree": "schedulefree.RAdamScheduleFree",
    "sgdschedulefree": "schedulefree.SGDScheduleFree",
}
_WAYS = frozenset({"fused", "foreach", "capturable", "differentiable"})
"""Arguments of PyTorch's that say how a step is computed."""
_BITSANDBYTES = re.compile(r"paged\w+|\w+(8|32)bit")


def _nothing() -> None:
    """Ordinary optimizers have no modes."""


@dataclass(frozen=True, kw_only=True)
class BuiltOptimizer:
    """An optimizer and what the loop, the metadata and the schedule need to know of it.

    `class_name` is the dotted class path, `arguments` "key=value,…". `schedule_free` optimizers hold their own
    schedule and want `train()` and `eval()` around saving and sampling. `forced_schedule` replaces `--lr_scheduler`.
    `notes` are for the person. `gather()` has all gradients on the device, which is to be before anybody looks at them.
    """

    optimizer: torch.optim.Optimizer
    class_name: str
    arguments: str
    schedule_free: bool = False
    forced_schedule: str | None = None
    notes: tuple[str, ...] = ()
    train: Callable[[], None] = _nothing
    eval: Callable[[], None] = _nothing
    gather: Callable[[], None] = _nothing

    @property
    def parameters(self) -> list[torch.Tensor]:
        """What it moves, in the order of the groups."""
        return list(parameters_of(self.optimizer))

    @property
    def description(self) -> str:
        """As the LoRA file's metadata has it."""
        return self.class_name + (f"({self.arguments})" if self.arguments else "")


@dataclass(frozen=True, kw_only=True)
class OptimizerChoice:
    """A class, and arguments that it takes. `lr` None: it finds its own rate, whatever the groups say.

    `forced_schedule` and `notes` as in BuiltOptimizer. `full_bf16` makes the parameters bf16, with stochastic rounding.
    `fused`: it takes its steps within backward. `cpu_offload`: what it needs waits in main memory between its steps.
    `loss_scaler`: one decides whether it takes them.
    """

    wanted: type
    arguments: dict[str, Any]
    lr: float | None
    forced_schedule: str | None = None
    notes: tuple[str, ...] = ()
    full_bf16: bool = False
    fused: bool = False
    cpu_offload: bool = False
    loss_scaler: bool = False

    @property
    def schedule_free(self) -> bool:
        return self.wanted.__name__.lower().endswith("schedulefree")

    def build(self, groups: Sequence[dict[str, Any]]) -> BuiltOptimizer:
        """The optimizer for parameter groups. OptionError when it refuses the arguments' values."""
        own = {"lr"} if self.lr is None else set()
        given = [{key: value for key, value in group.items() if key not in own} for group in groups]
        try:
            optimizer = self.wanted(given, lr=self.lr, **self.arguments, **self._in_one_kernel(given))
        except (TypeError, ValueError, AssertionError) as error:
            raise OptionError(
                f"--optimizer_type {self.wanted.__name__} refuses this: {_said(error)}.", _ADVICE
            ) from error
        modes: dict[str, Callable[[], None]] = {}
        if callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None)):
            modes = {"train": optimizer.train, "eval": optimizer.eval}
        if self.full_bf16:
            weights = Bf16Weights(optimizer)
            modes = {name: weights.in_float32(change) for name, change in modes.items()}
        if self.cpu_offload:
            offload = OptimizerOffload(optimizer, gradients=not self.fused)
            modes = {name: offload.on_the_device(change) for name, change in modes.items()}
            modes["gather"] = offload.gather
        return BuiltOptimizer(
            optimizer=optimizer,
            class_name=f"{self.wanted.__module__}.{self.wanted.__qualname__}",
            arguments=",".join(f"{key}={value}" for key, value in self.arguments.items()),
            schedule_free=self.schedule_free,
            forced_schedule=self.forced_schedule,
            notes=self.notes,
            **modes,
        )

    def _in_one_kernel(self, groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """AdamW on a GPU, unless told how: without tensors as large as all weights for a moment.

        Not with a loss scaler: accelerate would no longer see that a step was left out.
        """
        told = self.loss_scaler or not _WAYS.isdisjoint(self.arguments)
        on_gpu = all(parameter.is_cuda for group in groups for parameter in group["params"])
        can = on_gpu and self.wanted in (torch.optim.Adam, torch.optim.AdamW)
        return {"fused": True} if can and not told else {}

    def trial(self, rates: Sequence[float | None] | None = None) -> BuiltOptimizer:
        """The optimizer for four numbers at each of these rates: only the class itself knows which values it takes."""
        groups = [{"params": [torch.nn.Parameter(torch.ones(2, 2))], "lr": rate} for rate in (rates or [self.lr])]
        return self.build(groups)

    def step_alone(self, device: torch.device) -> bool:
        """Whether a step changes nothing but the parameter and its own state, after a step on four numbers there.

        OptionError when it cannot do any.
        """
        parameter = torch.nn.Parameter(torch.ones(2, 2, device=device))
        built = self.build([{"params": [parameter], "lr": self.lr}])
        (group,) = built.optimizer.param_groups
        built.train()
        before = {name: value for name, value in group.items() if name != "params"}
        parameter.grad = torch.ones_like(parameter)
        try:
            built.optimizer.step()
        except Exception as error:  # anybody's class, which may raise anything
            name = self.wanted.__name__
            raise OptionError(f"--optimizer_type {name} cannot take a step: {_said(error)}.", _ADVICE) from error
        return not built.schedule_free and before == {name: group[name] for name in before}


_ADVICE = "Look at --optimizer_args, or choose another --optimizer_type."


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__).rstrip(".")


def choose_optimizer(
    name: str,
    arguments: Sequence[str],
    *,
    lr: float,
    lr_scheduler: str = "constant",
    max_grad_norm: float = 1.0,
    rates: Sequence[float] | None = None,
    device: torch.device | str = "cpu",
    fused: bool = False,
    full_bf16: bool = False,
    cpu_offload: bool = False,
    loss_scaler: bool = False,
) -> OptimizerChoice:
    """Find the class, check its arguments, and let it take a step on `device`.

    `rates` are those of the groups to come, where they are several. `fused`: it shall do one parameter at a time.
    `full_bf16`, `cpu_offload` and `loss_scaler` as in OptimizerChoice. `lr_scheduler` and `max_grad_norm` are looked at
    for advice only.
    """
    chosen = _choice(name, parse_arguments(_FLAG, arguments), lr=lr, lr_scheduler=lr_scheduler, max_norm=max_grad_norm)
    check_names(_FLAG, chosen.arguments, chosen.wanted, own=("params", "lr"))
    if full_bf16 and chosen.schedule_free and chosen.wanted is not AdamWScheduleFree:
        raise OptionError(
            f"--full_bf16: {chosen.wanted.__name__} would lose what it has learnt each time that it is saved, since it "
            "computes its weights back from rounded ones.",
            "Choose --optimizer_type AdamWScheduleFree, or leave out --full_bf16.",
        )
    chosen = replace(chosen, full_bf16=full_bf16, fused=fused, cpu_offload=cpu_offload, loss_scaler=loss_scaler)
    chosen.trial(rates)
    if not chosen.step_alone(torch.device(device)) and fused:
        raise OptionError(
            f"--fused_backward_pass updates one parameter at a time, but {chosen.wanted.__name__} needs all together.",
            "Leave out --fused_backward_pass, or choose e.g. --optimizer_type AdamW, Adafactor, CAME, Lion or Muon.",
        )
    return chosen


def _choice(name: str, values: dict[str, Any], *, lr: float, lr_scheduler: str, max_norm: float) -> OptimizerChoice:
    lowered = name.lower()
    if lowered == "adafactor":
        return _adafactor(values, lr=lr, lr_scheduler=lr_scheduler, max_norm=max_norm)
    wanted, *notes = _class_of(name)
    chosen = OptimizerChoice(wanted=wanted, arguments=values, lr=lr)
    if chosen.schedule_free and lr_scheduler != "constant":
        notes.append(
            f"{wanted.__name__} needs no schedule: --lr_scheduler {lr_scheduler} has no effect. A warm-up is an "
            "argument of its own: --optimizer_args warmup_steps=100."
        )
    if wanted.__name__.startswith(("Prodigy", "DAdapt")) and 0 < lr < 0.1:
        notes.append(
            f"{wanted.__name__} finds its learning rate by itself and multiplies it with --learning_rate {lr:g}: "
            "1 is meant there, and less learns as much more slowly."
        )
    return replace(chosen, notes=tuple(notes))


def _class_of(name: str) -> tuple[Any, ...]:
    """(class, a note if there is something to say)."""
    lowered = name.lower()
    if lowered in ("", "adamw"):
        return (torch.optim.AdamW,)
    if lowered in OWN:
        return (OWN[lowered],)
    if lowered in _THEIRS and not _is_installed(lowered.partition(".")[0]):
        own = _THEIRS[lowered]
        return (
            own,
            f"{name.partition('.')[0]} is not installed: taking the engine's own {own.__name__}, which is alike. "
            f"{how_to_install(lowered)}",
        )
    if _BITSANDBYTES.fullmatch(lowered):
        return (find_class("--optimizer_type", f"bitsandbytes.optim.{name}", home="", given=name),)
    path = _ELSEWHERE.get(lowered, name)
    wanted = find_class("--optimizer_type", path, home="torch.optim", given=name, others=_known())
    if wanted is torch.optim.Optimizer or not callable(getattr(wanted, "step", None)):
        raise OptionError(f"--optimizer_type {name} is not an optimizer.", "E.g. AdamW, or a dotted class path.")
    return (wanted,)


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _known() -> list[str]:
    """Names that are not torch's."""
    elsewhere = [path.rpartition(".")[2] for path in _ELSEWHERE.values()]
    return [*(own.__name__ for own in OWN.values()), "Adafactor", "AdamW8bit", *elsewhere]


def _adafactor(values: dict[str, Any], *, lr: float, lr_scheduler: str, max_norm: float) -> OptimizerChoice:
    """transformers' Adafactor. With relative steps, its default here, it sets its own rate from `lr` on."""
    from transformers.optimization import Adafactor  # slow to import, and rarely wanted

    values = {"relative_step": True, **values}
    notes = []
    if values.get("warmup_init") and not values["relative_step"]:
        values["relative_step"] = True
        notes.append("Adafactor: warmup_init=True implies relative_step=True.")
    if values["relative_step"]:
        if lr_scheduler.split(":")[0] not in ("adafactor", "constant"):
            notes.append(
                f"Adafactor sets its own rate (relative_step=True): --lr_scheduler {lr_scheduler} has no effect."
            )
        return OptimizerChoice(
            wanted=Adafactor, arguments=values, lr=None, forced_schedule=f"adafactor:{lr}", notes=tuple(notes)
        )
    if max_norm:
        notes.append("Adafactor clips by itself: --max_grad_norm 0 is advised with relative_step=False.")
    if lr_scheduler != "constant_with_warmup":
        notes.append("Adafactor with relative_step=False does well with --lr_scheduler constant_with_warmup.")
    return OptimizerChoice(wanted=Adafactor, arguments=values, lr=lr, notes=tuple(notes))
