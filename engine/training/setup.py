"""What a training is set up with: the parts and the numbers that the loop is given, and what it gives back."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..contract.errors import DataError, OptionError
from ..contract.events import Control, Say
from .checkpoints import Checkpoints
from .optimizers import BuiltOptimizer
from .sigmas import SigmaSampling
from .states import StateParts
from .step import Velocity
from .trackers import Tracker

Batch = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Numbers of the loop. `max_steps` are optimizer steps; `accumulation` micro-batches make one of them."""

    max_steps: int
    seed: int
    sampling: SigmaSampling
    accumulation: int = 1
    max_grad_norm: float = 1.0
    scale_weight_norms: float | None = None
    sample_every_n_steps: int | None = None
    sample_every_n_epochs: int | None = None
    sample_at_first: bool = False


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The parts of a training.

    `batches(epoch, first)` yields this process's micro-batches of an epoch (from 0) beginning with number `first`, in
    an order that depends on nothing but the epoch; of several processes some may have none in the last round.
    `batches_per_epoch` is that of the process that has most. A batch has "latents" (BCTHW), and may have "timesteps"
    (uniforms 0..1 of `--num_timestep_buckets`); its latents times `latent_scale` are what the model takes.
    `item_names(epoch, first, count)` names what some batches hold.
    `velocity(noisy_BCTHW, timestep_B, cond)` runs the model. `on_sample(step, epoch)` draws samples;
    epoch (from 1, 0 before training) is None when a step is the reason.
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
    trackers: Sequence[Tracker] = ()
    on_sample: Callable[[int, int | None], None] | None = None
    item_names: Callable[[int, int, int], list[str]] | None = None

    @property
    def parts(self) -> StateParts:
        """What a state folder holds."""
        return StateParts(
            network=self.network,
            optimizer=self.optimizer.optimizer,
            scheduler=self.scheduler,
            scaler=self.accelerator.scaler,
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
    """(optimizer steps, epochs) of a training; `max_train_epochs` wins. The last group of an epoch may be smaller."""
    if batches_per_epoch < 1:
        raise DataError("There is nothing to train on: the dataset has no cached items.", "Run cache-latents first.")
    each = math.ceil(batches_per_epoch / accumulation)
    steps = max_train_epochs * each if max_train_epochs else max_train_steps
    if steps < 1:
        raise OptionError(f"--max_train_steps {steps} must be at least 1.")
    return steps, math.ceil(steps / each)


def step_seed(seed: int, step: int, micro_step: int, process: int) -> int:
    """Seed of one micro-step, 0..2^63: neighbours share nothing."""
    digest = hashlib.sha256(f"{seed}/{step}/{micro_step}/{process}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
