"""What the training loop is given (its parts and its numbers), and what it returns."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..contract.errors import DataError, OptionError
from ..contract.events import Control, Say
from .checkpoints import Checkpoints
from .ema import Ema
from .experts import TrainedExperts
from .group import SharedBase
from .optimizers import BuiltOptimizer
from .sigmas import SigmaSampling
from .states import Position, StateParts
from .step import Velocity
from .trackers import Tracker
from .validation import Validation

Batch = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Numbers of the loop.

    `max_steps` counts optimizer steps, each made of `accumulation` micro-batches per process. `max_minutes` counts from
    this start, not from the training's first one. `save_state_every_minutes` 0: never. `exploding_loss_factor` and
    `max_not_finite_steps` belong to the guard (training/guard.py).
    """

    max_steps: int
    seed: int
    sampling: SigmaSampling
    accumulation: int = 1
    max_grad_norm: float = 1.0
    fused_backward_pass: bool = False
    scale_weight_norms: float | None = None
    sample_every_n_steps: int | None = None
    sample_every_n_epochs: int | None = None
    sample_at_first: bool = False
    max_not_finite_steps: int = 10
    exploding_loss_factor: float = 5.0
    max_minutes: float | None = None
    save_state_every_minutes: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The parts of a training.

    An epoch is a row of `batches_per_epoch` micro-batches, in an order that depends on nothing but the epoch; of P
    processes each takes every P-th. `batches(epoch, first)` yields this process's share of an epoch (counted from 0),
    starting at number `first` of the row. A batch has "latents" (BCTHW; the model takes them times `latent_scale`). It
    may have "timesteps" (uniforms 0..1, for `--num_timestep_buckets`) and "prior": true where the LoRA must leave the
    base model's answer, `prior`, unchanged; such a loss counts `prior_weight` times.
    `item_names(epoch, first, count)` names the items in `count` batches of the row.
    `velocity(noisy_BCTHW, timestep_B, cond)` runs the model.
    `on_sample(step, epoch)` makes samples, in process 0. `epoch` counts from 1 and is 0 before training; it is None
    when a step, not the end of an epoch, was the reason.
    `experts`: several models that split the noise levels. `velocity` runs the one brought in last; parameters of the
    others have `requires_grad` off.
    `shared`: the model, where its weights are split over the processes. They have to run it together, even a process
    that has no use for the result.
    `ema` averages the trained weights; samples and validation see the average.
    `history` is saved with each state and loaded on resume: something with state_dict() and load_state_dict().
    `clock` counts seconds from an arbitrary origin; `sleep` waits for some.
    The accelerator must be made with gradient_accumulation_steps=1: the loop does its own accumulation.
    """

    accelerator: Accelerator
    network: Any
    optimizer: BuiltOptimizer
    scheduler: Any
    velocity: Velocity
    conditioning: Callable[[Batch], dict[str, Any]]
    batches: Callable[[int, int], Iterable[Batch]]
    batches_per_epoch: int
    checkpoints: Checkpoints
    say: Say
    control: Control
    latent_scale: float = 1.0
    prior: Velocity | None = None
    prior_weight: float = 1.0
    trackers: Sequence[Tracker] = ()
    on_sample: Callable[[int, int | None], None] | None = None
    item_names: Callable[[int, int, int], list[str]] | None = None
    experts: TrainedExperts | None = None
    shared: SharedBase | None = None
    ema: Ema | None = None
    history: Any = None
    validation: Validation | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    @property
    def parts(self) -> StateParts:
        """What a state folder holds."""
        return StateParts(
            network=self.network,
            optimizer=self.optimizer.optimizer,
            scheduler=self.scheduler,
            scaler=self.accelerator.scaler,
            history=self.history,
            ema=self.ema,
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a training ended. `path`: the LoRA saved last, None in processes that save none; `epoch` counts from 1."""

    step: int
    epoch: int
    loss_average: float
    path: Path | None
    stopped: bool = False


def count_steps(
    batches_per_epoch: int, *, accumulation: int, max_train_steps: int, max_train_epochs: int | None
) -> tuple[int, int]:
    """(optimizer steps, epochs) of a training; `max_train_epochs` wins. The last step of an epoch may be smaller.

    `accumulation`: micro-batches per step, over all processes.
    """
    if batches_per_epoch < 1:
        raise DataError("There is nothing to train on: the dataset has no cached items.", "Run cache-latents first.")
    each = math.ceil(batches_per_epoch / accumulation)
    steps = max_train_epochs * each if max_train_epochs else max_train_steps
    if steps < 1:
        raise OptionError(f"--max_train_steps {steps} must be at least 1.")
    return steps, math.ceil(steps / each)


def starting_position(start: Position, batches_per_epoch: int, together: int) -> tuple[Position, str]:
    """(where to resume, a warning about it or ""). `together`: micro-batches per step, over all processes.

    A place within an epoch means nothing once the data or the grouping has changed: training then resumes at the start
    of the epoch. Half the processes with twice the accumulation are the same grouping.
    """
    before = (start.batches_per_epoch, start.accumulation * start.processes)
    if start.step == 0 or before == (batches_per_epoch, together):
        return start, ""
    epoch = start.step // math.ceil(batches_per_epoch / together)
    return replace(start, epoch=epoch, batch=0, losses=()), (
        "The dataset, --gradient_accumulation_steps or the number of processes changed since the state was saved: "
        f"resuming after step {start.step} at the beginning of epoch {epoch + 1}."
    )


def step_seed(seed: int, step: int, number: int) -> int:
    """Seed of micro-batch `number` of a step, 0..2^63, whichever process has it. Neighbours are unrelated."""
    digest = hashlib.sha256(f"{seed}/{step}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
