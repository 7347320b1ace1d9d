"""The training loop: the only one, for every family and every job.

It knows batches (dictionaries with "latents"), a velocity function and the parts in `Setup`; it knows no family, no
option and no file format. Every random draw is seeded from (seed, step, micro-batch), so a resumed training continues
bit for bit, neither sampling nor data loading can disturb it, and N processes compute exactly what one process would
with N times the accumulation. It synchronises with the GPU once per optimizer step. Given up: accelerate's own
accumulation and data sharding, which cannot say where in an epoch they are; instead `Setup.batches` yields what this
process is to train on.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..contract.errors import DataError
from ..contract.events import Event, Log, Meter, Metric, Progress, Stage, Warning_
from ..contract.wording import counted
from ..ops.randomness import undisturbed_randomness
from .broken_step import StepWatch, what_was_done_is_kept
from .checkpoints import is_due
from .experts import ALL_LEVELS, choose_expert
from .fused_backward import FusedBackward
from .group import Group
from .guard import Fault, Guard
from .micro_batch import drawn_error
from .requests import Requests
from .saves import Saves
from .schedules import rates_by_name
from .setup import Batch, Outcome, Settings, Setup, count_steps, starting_position, step_seed
from .states import Position
from .tally import Measured, Tally
from .validation import validation_losses
from .watch import Watch, Window

__all__ = ["Outcome", "Settings", "Setup", "count_steps", "step_seed", "train"]
WEIGHT_NORM_EVERY = 10  # steps: the norm costs a few small matrix products per adapted module


def train(setup: Setup, settings: Settings, *, start: Position | None = None) -> Outcome:
    """Train until `max_steps` or a requested stop; everything is saved by the time it returns.

    `start` is the position stored in a loaded state. OptionError when too many steps in a row had to be skipped.
    """
    assert setup.accelerator.gradient_accumulation_steps == 1
    with warnings.catch_warnings():
        # Skipping the first step (overflow, not finite) is intended: the schedule counts it all the same.
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step", category=UserWarning)
        return _Training(setup, settings, start).run()


class _Training:
    """One run of the loop, and its position in the training."""

    def __init__(self, setup: Setup, settings: Settings, start: Position | None) -> None:
        self.setup, self.settings, self.accelerator = setup, settings, setup.accelerator
        self.group = Group(setup.accelerator)
        self.optimizer = setup.accelerator.prepare_optimizer(setup.optimizer.optimizer, device_placement=False)
        self.parameters = setup.optimizer.parameters
        self.fused = FusedBackward(setup.optimizer.optimizer) if settings.fused_backward_pass else None
        self.steps = StepWatch(setup.optimizer.optimizer)
        self.together = settings.accumulation * self.group.count  # micro-batches in a step
        self.steps_per_epoch = math.ceil(setup.batches_per_epoch / self.together)
        self.epochs = math.ceil(settings.max_steps / self.steps_per_epoch)
        start = start or Position(seed=settings.seed)
        start, note = starting_position(start, setup.batches_per_epoch, self.together)
        if note:
            self._say(Warning_(message=note))
        self.step, self.epoch, self.batch, self.seed = start.step, start.epoch, start.batch, start.seed
        stored: Sequence[Mapping[str, Any]] = start.guards or [
            {} for _ in (setup.experts.names if setup.experts else [""])
        ]
        factor, patience = settings.exploding_loss_factor, settings.max_not_finite_steps
        self.guards = [Guard(factor=factor, patience=patience, stored=each) for each in stored]  # one per expert
        self.watch = Watch(start.watch)
        self.tally = Tally(setup.accelerator.device)
        self.requests = Requests(setup, settings, self.group)
        self.saves = Saves(setup, self.requests, self.group, self.parameters, best=start.best, say=self._say)
        self.expert, self.bounds = 0, ALL_LEVELS
        self.window = Window(setup.batches_per_epoch, start.losses)
        self.first_step = start.step
        self.stopping = False  # a stop was requested while samples were being made
        self.meter = Meter(self._shifted, total=settings.max_steps - start.step, unit="steps", label="Training")

    @property
    def position(self) -> Position:
        return Position(
            step=self.step,
            epoch=self.epoch,
            batch=self.batch,
            seed=self.seed,
            losses=self.window.losses,
            batches_per_epoch=self.setup.batches_per_epoch,
            accumulation=self.settings.accumulation,
            processes=self.group.count,
            watch=self.watch.state(),
            guards=tuple(guard.state() for guard in self.guards),
            best=self.saves.best.state(),
        )

    @property
    def guard(self) -> Guard:
        """The guard of the expert being trained."""
        return self.guards[self.expert]

    @property
    def exploding(self) -> bool:
        """Whether scheduled saves must wait: they would displace the last good ones."""
        return any(guard.exploding for guard in self.guards)

    # --- events

    def _say(self, event: Event) -> None:
        if self.group.leads:
            self.setup.say(event)

    def _shifted(self, event: Event) -> None:
        """The meter counts the steps of this run, to get the rate right; shift them to steps of the whole training."""
        if isinstance(event, Progress) and event.total is not None:
            first = self.first_step
            event = replace(event, done=event.done + first, total=event.total + first)
        self._say(event)

    def _log(self, values: dict[str, float], step: int) -> None:
        if self.group.leads:
            for tracker in self.setup.trackers:
                tracker.log(values, step)

    # --- the run

    def run(self) -> Outcome:
        with what_was_done_is_kept(self._keep_what_is_done):
            return self._run()

    def _run(self) -> Outcome:
        self._begin()
        while self.step < self.settings.max_steps:
            if self._run_epoch():
                return self._outcome(stopped=True)
        self.meter.close()
        self._modes(training=False)
        self.saves.last(self.epochs, self.position)
        return self._outcome(stopped=False)

    def _begin(self) -> None:
        settings = self.settings
        length = f"{counted(settings.max_steps, 'step')}, {counted(self.epochs, 'epoch')}"
        self._say(Stage(name="Training", message=length))
        self.group.copy_from_first([parameter.data for parameter in self.parameters])
        if self.setup.ema is not None and self.setup.ema.begin() and self.step:
            self._say(Log(message=f"The state holds no average of the LoRA: averaging starts at step {self.step}."))
        if self.step >= settings.max_steps:
            text = f"The state is already at step {self.step} of {settings.max_steps}"
            self._say(Warning_(message=f"{text}: there is nothing left to train. Raise --max_train_steps to continue."))
        elif self.step:
            self._say(Log(message=f"Resuming after step {self.step}, in epoch {self.epoch + 1}."))
        else:
            self._validate()
            if settings.sample_at_first:
                self._sample(0)
        self._modes(training=True)

    def _outcome(self, *, stopped: bool) -> Outcome:
        self.meter.close()
        return Outcome(
            step=self.step,
            epoch=min(self.epoch + 1, self.epochs),
            loss_average=self.window.mean,
            path=self.setup.checkpoints.newest,
            stopped=stopped,
        )

    def _run_epoch(self) -> bool:
        """Train the rest of the current epoch. Returns whether a stop was requested: then all is saved."""
        setup = self.setup
        batches = iter(setup.batches(self.epoch, self.batch))
        try:
            while self.batch < setup.batches_per_epoch and self.step < self.settings.max_steps:
                if self.stopping:
                    self._save_step(stopping=True)
                    return True
                count = min(self.together, setup.batches_per_epoch - self.batch)
                self._train_step(batches, count)
                if self._after_step():
                    return True
        finally:
            if isinstance(batches, Generator):
                batches.close()  # ends the read-ahead threads
        self._end_epoch()
        return False

    def _end_epoch(self) -> None:
        """Save, validate and sample as due. An epoch cut short by `max_steps` keeps its place, for a later resume."""
        epoch = self.epoch + 1
        self._log({"loss/epoch": self.window.epoch_mean}, epoch)
        saving = self.setup.checkpoints.due_after_epoch(epoch, self.epochs) and not self.exploding
        sampling = is_due(epoch, self.settings.sample_every_n_epochs)
        validation = self.setup.validation
        validating = validation is not None and validation.due_after_epoch(epoch)
        if self.batch >= self.setup.batches_per_epoch:
            self.epoch, self.batch = epoch, 0
        if saving or sampling or validating:
            self._modes(training=False)
            if validating:
                self._validate()
            if saving:
                self.saves.epoch(epoch, self.position)
            if sampling:
                self._sample(epoch)
            self._modes(training=True)

    # --- one optimizer step

    def _train_step(self, batches: Iterator[Batch], count: int) -> None:
        """One optimizer step on `count` micro-batches. This process takes its share: near an epoch's end maybe none."""
        self.tally.clear()
        mine = range(self.group.number, count, self.group.count)
        batch = next(batches, None) if mine else None
        self._take_turn(batch)
        for number in self.group.rounds(count, self.setup.shared):
            batch = batch if number == mine[0] else next(batches, None)
            if batch is None:
                raise DataError("The data ran out before the epoch ended.", "Were cache files removed while training?")
            loss = self._loss(batch, number)
            if self.fused is None or self._is_sound(loss):
                self.accelerator.backward(loss / count)
        measured = self.tally.take(self.group, self._clip_gradients(), count=count)
        # With a loss scaler, overflowing gradients are routine: the scaler skips the step and scales down.
        scaled = self.accelerator.scaler is not None
        fault = self.guard.fault(measured, scaled=scaled)
        if fault is None and self.fused is None:
            self.optimizer.step()
        elif scaled:
            self.accelerator.scaler.update()
        self.setup.scheduler.step()
        rates = rates_by_name(self.optimizer, self.setup.scheduler)
        self.optimizer.zero_grad(set_to_none=True)
        first, self.batch = self.batch, self.batch + count
        self.step += 1
        self.guard.note(measured, fault)
        if fault is not None:
            self._report_skipped(fault, first, count)
        else:
            self._report(measured, rates)
            if self.setup.ema is not None and not self.optimizer.step_was_skipped:
                self.setup.ema.update()
        self.steps.finish()
        self.meter.advance()

    def _clip_gradients(self) -> Tensor:
        """Clip, and return the total norm before clipping. A fused backward pass has already consumed the gradients."""
        if self.fused is not None:
            return self.fused.take_norm()
        self.setup.optimizer.gather()
        self.group.add_up_gradients(self.parameters)
        return self.accelerator.clip_grad_norm_(self.parameters, self.settings.max_grad_norm or math.inf)

    def _take_turn(self, batch: Batch | None) -> None:
        """With several experts, bring in the one to train in this step: the same one in every process."""
        experts, number = self.setup.experts, 0
        if experts is None:
            return
        if batch is not None:
            number = choose_expert(
                self.settings.sampling,
                experts.starts,
                latent_size=(batch["latents"].shape[-2], batch["latents"].shape[-1]),
                generator=torch.Generator().manual_seed(step_seed(self.seed, self.step, -1)),
            )
        self.expert = self.group.broadcast(number)
        self.bounds = experts.bounds(self.expert)
        experts.use(self.expert)

    def _loss(self, batch: Batch, number: int) -> Tensor:
        """The loss of micro-batch `number` of this step."""
        seed = step_seed(self.seed, self.step, number)
        drawn = drawn_error(self.setup, self.settings.sampling, batch, seed=seed, bounds=self.bounds)
        return self.tally.add(number, drawn)

    def _is_sound(self, loss: Tensor) -> bool:
        """Judge the loss before a fused backward pass, which cannot be undone. Such a step is a single micro-batch."""
        return self.guard.fault(self.tally.take(self.group, torch.zeros_like(loss), count=1)) is None

    def _report(self, measured: Measured, rates: dict[str, float]) -> None:
        self.window.extend(measured.losses)
        loss = sum(measured.losses) / len(measured.losses)
        levels = self.watch.add_levels(measured.level_sums, measured.level_counts)
        values = {"loss/current": loss, "loss/average": self.window.mean, **rates, **levels}
        if self.setup.experts is not None:
            values[f"loss/{self.setup.experts.names[self.expert]}"] = loss
        if not math.isnan(measured.strayed):
            values["loss/prior"] = measured.strayed
        values["grad_norm"] = measured.gradient_norm
        if self.step % WEIGHT_NORM_EVERY == 0:
            values["weight_norm"] = self.setup.network.weight_norm()
        if self.settings.scale_weight_norms:
            stats = self.setup.network.clamp_norms(self.settings.scale_weight_norms)
            values |= {f"max_norm/{name}": value for name, value in stats.named().items()}
        self._tell(values)
        warning = self.watch.add_loss(loss)
        if warning:
            self._say(Warning_(message=f"Step {self.step}: {warning}"))

    def _tell(self, values: dict[str, float]) -> None:
        self._say(Metric(step=self.step, values=values, epoch=self.epoch + 1))
        self._log(values, self.step)

    def _report_skipped(self, fault: Fault, first: int, count: int) -> None:
        names = self.setup.item_names(self.epoch, first, count) if self.setup.item_names else []
        named = f" Items: {', '.join(names)}." if names else ""
        self._say(Warning_(message=f"Step {self.step}: {fault.text}; the step was skipped.{named}"))
        if self.guard.gives_up:
            if not self.guard.exploding:
                self._save_step(stopping=True)
            kept = self.group.broadcast(str(self.setup.checkpoints.newest or ""))
            raise self.guard.surrender(self.step, named=named, kept=kept)

    # --- between two steps

    def _after_step(self) -> bool:
        """Validate, save and sample as due or requested. Returns whether a stop was requested."""
        checkpoints = self.setup.checkpoints
        stop, save, sample, state = self.requests.take()
        stop = stop and self.step < self.settings.max_steps
        due = checkpoints.due_after_step(self.step) and not self.exploding
        state = state and not self.exploding
        validation = self.setup.validation
        validating = not stop and validation is not None and validation.due_after_step(self.step)
        sampling = not stop and (sample or is_due(self.step, self.settings.sample_every_n_steps))
        if not (stop or save or due or state or sampling or validating):
            return False
        if validating:
            self._validate()  # first, so that a saved state includes it
        if stop or save or due:
            self._save_step(with_state=save, stopping=stop)
        elif state:
            self._modes(training=False)
            self.saves.passing_state(self.position)
        if sampling:
            self._sample(None)
        self._modes(training=True)
        return stop

    def _save_step(self, *, with_state: bool = False, stopping: bool = False) -> None:
        self._modes(training=False)
        self.saves.step(self.position, with_state=with_state, stopping=stopping)

    def _keep_what_is_done(self) -> None:
        """A failure ends the training: save the steps before it, so that the same command, or a retry with less memory,
        resumes there.

        Some parameters may have taken the step at hand already, with a fused backward pass or where the optimizer's own
        step broke off: then what is on disk has to do. So too where it was the disk that failed, and while the loss
        explodes.
        """
        sound = self.fused is None and not self.steps.halfway and not self.exploding
        self.optimizer.zero_grad(set_to_none=True)
        if self.step > self.first_step and self.group.leads and sound and not self.saves.gave_up:
            self._modes(training=False)
            self.saves.passing_state(self.position, ending=True)

    def _validate(self) -> None:
        """Report the loss on held-out clips; if it is the lowest, keep the LoRA. Leaves no trace in the training."""
        if self.setup.validation is None:
            return
        self._modes(training=False)
        with self._evaluating():
            losses = validation_losses(self.setup, self.setup.validation, self.group, say=self._say)
            self._tell(losses)
        self.saves.best_so_far(losses["loss/validation"], self.position)

    def _sample(self, epoch: int | None) -> None:
        """Make samples. Leaves no trace in the training; a stop requested meanwhile is obeyed before the next step."""
        if self.setup.on_sample is None:
            self._say(Warning_(message="No samples can be made: --sample_prompts was not given."))
            return
        self._modes(training=False)
        with self.group.first(1, self.setup.shared) as mine:
            if mine:
                with self._evaluating(), torch.no_grad():
                    self.setup.on_sample(self.step, epoch)
        self.stopping = self.group.broadcast(self.setup.control.stop_requested)
        self._say(Stage(name="Training", message=f"{self.step} of {self.settings.max_steps} steps are done"))

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Show the LoRA, or its average if there is one; pause the clock and restore the random state afterwards."""
        averaged = nullcontext() if self.setup.ema is None else self.setup.ema.shown()
        with self.meter.paused(), undisturbed_randomness(self.accelerator.device), averaged:
            yield

    def _modes(self, *, training: bool) -> None:
        """Switch dropout, and the weights of a schedule-free optimizer, which differ between training and use."""
        self.setup.network.train(training)
        (self.setup.optimizer.train if training else self.setup.optimizer.eval)()
