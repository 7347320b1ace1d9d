"""What a training is set up with: the parts and the numbers that the loop is given, and what it gives back."""

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
    """Numbers of the loop. `max_steps` are optimizer steps; `accumulation` micro-batches of each process make one.
    `max_minutes` count from this start on; 0 for `save_state_every_minutes` is never; `exploding_loss_factor` and
    `max_not_finite_steps` are the guard's (training/guard.py)."""

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

    An epoch is a row of micro-batches, `batches_per_epoch` of them, in an order that depends on nothing but the epoch;
    of several processes each takes every n-th. `batches(epoch, first)` yields this one's of an epoch (from 0), counted
    from number `first` of the row. A batch has "latents" (BCTHW), and may have "timesteps" (uniforms 0..1 of
    `--num_timestep_buckets`). With `prior`, which is the model without what is trained, it may have "prior": whether it
    shall go on answering like that, its loss times `prior_weight`. Latents times `latent_scale` are what the model
    takes.
    `item_names(epoch, first, count)` names what some batches of the row hold.
    `velocity(noisy_BCTHW, timestep_B, cond)` runs the model. `on_sample(step, epoch)` makes
    samples, in the first process; epoch (from 1, 0 before training) is None when a step is the reason.
    `experts`: of several models that share the noise levels, `velocity` runs the one that was last brought in, and
    parameters that belong to the others have `requires_grad` off.
    `shared`: the model, where processes share out its weights: they run it together, whether they need it or not.
    `ema` averages what is trained: samples and validation see the average.
    `history` is what a training that goes on shall know of before: something with state_dict() and load_state_dict().
    `clock` counts seconds, from anywhere.
    The accelerator must be made with gradient_accumulation_steps=1: the loop accumulates by itself.
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
    """How a training ended. `path` is the LoRA saved last; `epoch` counts from 1."""

    step: int
    epoch: int
    loss_average: float
    path: Path
    stopped: bool = False


def count_steps(
    batches_per_epoch: int, *, accumulation: int, max_train_steps: int, max_train_epochs: int | None
) -> tuple[int, int]:
    """(optimizer steps, epochs) of a training; `max_train_epochs` wins. The last group of an epoch may be smaller.

    `accumulation`: micro-batches in a step, of all processes together.
    """
    if batches_per_epoch < 1:
        raise DataError("There is nothing to train on: the dataset has no cached items.", "Run cache-latents first.")
    each = math.ceil(batches_per_epoch / accumulation)
    steps = max_train_epochs * each if max_train_epochs else max_train_steps
    if steps < 1:
        raise OptionError(f"--max_train_steps {steps} must be at least 1.")
    return steps, math.ceil(steps / each)


def fitting(start: Position, batches_per_epoch: int, together: int) -> tuple[Position, str]:
    """(where a training goes on, what to say about it). `together`: micro-batches in a step, of all processes.

    A place in an epoch means nothing after the data or the grouping changed: then it goes on at the epoch's start.
    Half the processes with twice the accumulation are the same grouping.
    """
    before = (start.batches_per_epoch, start.accumulation * start.processes)
    if start.step == 0 or before == (batches_per_epoch, together):
        return start, ""
    epoch = start.step // math.ceil(batches_per_epoch / together)
    return replace(start, epoch=epoch, batch=0, losses=()), (
        "The dataset, --gradient_accumulation_steps or the number of processes changed since the state was saved: "
        f"going on after step {start.step} at the beginning of epoch {epoch + 1}."
    )


def step_seed(seed: int, step: int, number: int) -> int:
    """Seed of micro-batch `number` of a step, 0..2^63: neighbours share nothing. Whichever process has it."""
    digest = hashlib.sha256(f"{seed}/{step}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
