"""The optimizer that a person names: AdamW, AdamW8bit, Adafactor, a class of torch.optim, or any dotted path.

Knows parameter groups and nothing of what they belong to. Differences from musubi-tuner on purpose: an empty
`--optimizer_type` is AdamW, as its help always said, and arguments that the class does not have are an error that
names the nearest one.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..contract.errors import OptionError
from .arguments import check_names, find_class, parse_arguments

_FLAG = "--optimizer_args"


def _nothing() -> None:
    """Ordinary optimizers have no modes."""


@dataclass(frozen=True, kw_only=True)
class BuiltOptimizer:
    """An optimizer and what the loop, the metadata and the schedule need to know of it.

    `class_name` is the dotted class path, `arguments` "key=value,…". `schedule_free` optimizers hold their own
    schedule and want `train()` and `eval()` around saving and sampling. `forced_schedule` replaces `--lr_scheduler`.
    `notes` are for the person.
    """

    optimizer: torch.optim.Optimizer
    class_name: str
    arguments: str
    schedule_free: bool = False
    forced_schedule: str | None = None
    notes: tuple[str, ...] = ()
    train: Callable[[], None] = _nothing
    eval: Callable[[], None] = _nothing

    @property
    def description(self) -> str:
        """As the LoRA file's metadata has it."""
        return self.class_name + (f"({self.arguments})" if self.arguments else "")


def create_optimizer(
    name: str,
    arguments: Sequence[str],
    groups: Sequence[dict[str, Any]],
    *,
    lr: float,
    lr_scheduler: str = "constant",
    max_grad_norm: float = 1.0,
) -> BuiltOptimizer:
    """Make the optimizer for parameter groups. `lr_scheduler` and `max_grad_norm` are looked at for advice only."""
    values = parse_arguments(_FLAG, arguments)
    lowered = name.lower()
    if lowered == "adafactor":
        return _adafactor(values, groups, lr=lr, lr_scheduler=lr_scheduler, max_grad_norm=max_grad_norm)
    if lowered in ("", "adamw"):
        wanted: type = torch.optim.AdamW
    elif "." not in name and lowered.endswith("8bit"):
        wanted = _eight_bit(name)
    else:
        wanted = find_class("--optimizer_type", name, home="torch.optim")
        if wanted is torch.optim.Optimizer or not callable(getattr(wanted, "step", None)):
            raise OptionError(f"--optimizer_type {name} is not an optimizer.", "E.g. AdamW, or a dotted class path.")
    return _built(wanted, values, groups, lr=lr)


def _built(
    wanted: type, values: dict[str, Any], groups: Sequence[dict[str, Any]], *, lr: float | None, **known: Any
) -> BuiltOptimizer:
    check_names(_FLAG, values, wanted, own=("params", "lr"))
    try:
        optimizer = wanted([dict(group) for group in groups], lr=lr, **values)
    except (TypeError, ValueError) as error:
        raise OptionError(f"{_FLAG}: {wanted.__name__} refuses these values: {error}.") from error
    modes = {}
    if callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None)):
        modes = {"train": optimizer.train, "eval": optimizer.eval}
    return BuiltOptimizer(
        optimizer=optimizer,
        class_name=f"{wanted.__module__}.{wanted.__qualname__}",
        arguments=",".join(f"{key}={value}" for key, value in values.items()),
        schedule_free=wanted.__name__.lower().endswith("schedulefree"),
        **modes,
        **known,
    )


def _eight_bit(name: str) -> type:
    """A class of bitsandbytes, which needs a CUDA GPU."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise OptionError(
            f"--optimizer_type {name} needs the package bitsandbytes, which is not in the engine's environment.",
            "Install bitsandbytes there, or choose --optimizer_type AdamW.",
        )
    if not torch.cuda.is_available():
        raise OptionError(
            f"--optimizer_type {name} needs a CUDA GPU, and none can be used here.", "Choose --optimizer_type AdamW."
        )
    return find_class("--optimizer_type", name, home="bitsandbytes.optim")


def _adafactor(
    values: dict[str, Any],
    groups: Sequence[dict[str, Any]],
    *,
    lr: float,
    lr_scheduler: str,
    max_grad_norm: float,
) -> BuiltOptimizer:
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
        bare = [{key: value for key, value in group.items() if key != "lr"} for group in groups]
        return _built(Adafactor, values, bare, lr=None, forced_schedule=f"adafactor:{lr}", notes=tuple(notes))
    if max_grad_norm:
        notes.append("Adafactor clips by itself: --max_grad_norm 0 is advised with relative_step=False.")
    if lr_scheduler != "constant_with_warmup":
        notes.append("Adafactor with relative_step=False does well with --lr_scheduler constant_with_warmup.")
    return _built(Adafactor, values, groups, lr=lr, notes=tuple(notes))
