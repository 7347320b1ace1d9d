"""The training loop: the only one, for every family and every job.

It knows batches as dictionaries with "latents", a velocity function, and the parts handed to it (`setup.py`); no
family, no option, no file format. Every random draw is seeded from (seed, step, micro-step, process), so a resumed
training continues bit for bit and neither sampling nor data loading can disturb it. It waits for the GPU once an
optimizer step. Given up: accelerate's own accumulation and data sharding, which cannot say where in an epoch they
are; the caller's `batches` yields what this process is to train on.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import Tensor

from ..contract.errors import DataError, OptionError
from ..contract.events import Event, Log, Meter, Metric, Progress, Stage, Warning_
from .setup import Batch, Outcome, Settings, Setup, count_steps, step_seed
from .sigmas import draw, loss_weight
from .states import Position
from .step import flow_step

__all__ = ["Outcome", "Settings", "Setup", "count_steps", "step_seed", "train"]
NOT_FINITE_LIMIT = 5


def train(setup: Setup, settings: Settings, *, start: Position | None = None) -> Outcome:
    """Train until `max_steps`, or until a stop is asked for; everything is saved when it returns.

    `start` is where a loaded state goes on. OptionError when the loss stays without a finite value.
    """
    assert setup.accelerator.gradient_accumulation_steps == 1
    with warnings.catch_warnings():
        # A skipped first step (overflow, not finite) is meant: the schedule follows the step number all the same.
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step", category=UserWarning)
        return _Training(setup, settings, start).run()


def to_device(value: Any, device: torch.device) -> Any:
    """Tensors in any nesting of dicts, lists and tuples, moved."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: to_device(entry, device) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_device(entry, device) for entry in value)
    return value


class _Training:
    """One run of the loop and where it is."""

    def __init__(self, setup: Setup, settings: Settings, start: Position | None) -> None:
        self.setup, self.settings, self.accelerator = setup, settings, setup.accelerator
        self.optimizer = setup.accelerator.prepare_optimizer(setup.optimizer.optimizer, device_placement=False)
        self.parameters = [entry for group in self.optimizer.param_groups for entry in group["params"]]
        self.steps_per_epoch = math.ceil(setup.batches_per_epoch / settings.accumulation)
        self.epochs = math.ceil(settings.max_steps / self.steps_per_epoch)
        start = self._fitting(start or Position(seed=settings.seed))
        self.step, self.epoch, self.batch = start.step, start.epoch, start.batch
        self.seed, self.not_finite = start.seed, start.not_finite
        self.window = deque(start.losses, maxlen=setup.batches_per_epoch)
        self.first_step = start.step
        self.meter = Meter(self._shifted, total=settings.max_steps - start.step, unit="step", label="Training")

    def _fitting(self, start: Position) -> Position:
        """A place in an epoch means nothing after the data or the grouping changed: go on at the epoch's start."""
        same = (self.setup.batches_per_epoch, self.settings.accumulation, self.accelerator.num_processes)
        if start.step == 0 or (start.batches_per_epoch, start.accumulation, start.processes) == same:
            return start
        text = "The dataset, --gradient_accumulation_steps or the number of processes changed since the state was saved"
        epoch = start.step // self.steps_per_epoch
        self._say(Warning_(message=f"{text}: going on after step {start.step} at the beginning of epoch {epoch + 1}."))
        return replace(start, epoch=epoch, batch=0, losses=())

    @property
    def position(self) -> Position:
        return Position(
            step=self.step,
            epoch=self.epoch,
            batch=self.batch,
            seed=self.seed,
            losses=tuple(self.window),
            not_finite=self.not_finite,
            batches_per_epoch=self.setup.batches_per_epoch,
            accumulation=self.settings.accumulation,
            processes=self.accelerator.num_processes,
        )

    @property
    def average(self) -> float:
        return sum(self.window) / len(self.window) if self.window else math.nan

    # --- events

    def _say(self, event: Event) -> None:
        if self.accelerator.is_main_process:
            self.setup.say(event)

    def _shifted(self, event: Event) -> None:
        """The meter counts this run's steps, so that the rate is right; people count the training's."""
        if isinstance(event, Progress) and event.total is not None:
            first = self.first_step
            event = replace(event, done=event.done + first, total=event.total + first)
        self._say(event)

    def _log(self, values: dict[str, float], step: int) -> None:
        if self.accelerator.is_main_process:
            for tracker in self.setup.trackers:
                tracker.log(values, step)

    # --- the run

    def run(self) -> Outcome:
        self._begin()
        while self.step < self.settings.max_steps:
            saved = self._run_epoch()
            if saved is not None:
                return self._outcome(saved, stopped=True)
        self.meter.close()
        self._modes(training=False)
        path = self._save(lambda: self.setup.checkpoints.save_last(self.epochs, self.setup.parts, self.position))
        return self._outcome(path, stopped=False)

    def _begin(self) -> None:
        settings = self.settings
        self._say(Stage(name="training", message=f"{settings.max_steps} steps, {self.epochs} epochs"))
        if self.accelerator.num_processes > 1:
            for parameter in self.parameters:
                parameter.data.copy_(broadcast(parameter.data))
        if self.step >= settings.max_steps:
            text = f"The state has {self.step} of {settings.max_steps} steps already"
            self._say(Warning_(message=f"{text}: nothing is left to train. Raise --max_train_steps to go on."))
        elif self.step:
            self._say(Log(message=f"Going on after step {self.step}, in epoch {self.epoch + 1}."))
        elif settings.sample_at_first:
            self._sample(0)
        self._modes(training=True)

    def _outcome(self, path: Path, *, stopped: bool) -> Outcome:
        self.meter.close()
        epoch = min(self.epoch + 1, self.epochs)
        return Outcome(step=self.step, epoch=epoch, loss_average=self.average, path=path, stopped=stopped)

    def _run_epoch(self) -> Path | None:
        """The rest of the current epoch. A path when a stop was asked for and everything is saved there."""
        setup = self.setup
        batches = iter(setup.batches(self.epoch, self.batch))
        try:
            while self.batch < setup.batches_per_epoch and self.step < self.settings.max_steps:
                count = min(self.settings.accumulation, setup.batches_per_epoch - self.batch)
                self._train_step(batches, count)
                saved = self._after_step()
                if saved is not None:
                    return saved
        finally:
            if isinstance(batches, Generator):
                batches.close()  # ends the threads that read ahead
        self._end_epoch()
        return None

    def _end_epoch(self) -> None:
        """What an epoch's end brings. An epoch cut short by `max_steps` keeps its place, for a longer training."""
        epoch = self.epoch + 1
        self._log({"loss/epoch": self.average}, epoch)
        every = self.settings.sample_every_n_epochs
        saving = self.setup.checkpoints.due_after_epoch(epoch, self.epochs)
        sampling = bool(every) and epoch % (every or 1) == 0
        if self.batch >= self.setup.batches_per_epoch:
            self.epoch, self.batch = epoch, 0
        if saving or sampling:
            self._modes(training=False)
            if saving:
                self._save(lambda: self.setup.checkpoints.save_epoch(epoch, self.setup.parts, self.position))
            if sampling:
                self._sample(epoch)
            self._modes(training=True)

    # --- one optimizer step

    def _train_step(self, batches: Iterator[Batch], count: int) -> None:
        losses: list[Tensor] = []
        for micro_step in range(count):
            batch = next(batches, None)
            if batch is None:
                self._check_end()
                continue
            loss = self._loss(batch, micro_step)
            self.accelerator.backward(loss / count)
            losses.append(loss.detach().float())
        self._average_gradients(len(losses), count)
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.settings.max_grad_norm or math.inf)
        current, gradient_norm = self._measured(losses, norm, count)
        # With a loss scaler an overflow of the gradients is ordinary: the scaler skips the step and scales down.
        scaled = self.accelerator.scaler is not None
        good = all(math.isfinite(value) for value in current) and (scaled or math.isfinite(gradient_norm))
        if good:
            self.optimizer.step()
        elif scaled:
            self.accelerator.scaler.update()
        self.setup.scheduler.step()
        rates = self._rates()
        self.optimizer.zero_grad(set_to_none=True)
        first, self.batch = self.batch, self.batch + count
        self.step += 1
        if good:
            self._report(current, gradient_norm, rates)
        else:
            self._report_not_finite(first, count)
        self.meter.advance()

    def _loss(self, batch: Batch, micro_step: int) -> Tensor:
        setup, device = self.setup, self.accelerator.device
        seed = step_seed(self.seed, self.step, micro_step, self.accelerator.process_index)
        torch.manual_seed(seed)  # dropout
        latents_BCTHW = setup.latent_scale * batch["latents"].to(device, torch.float32, non_blocking=True)
        uniforms = batch.get("timesteps")
        sigma_B, timestep_B = draw(
            self.settings.sampling,
            count=latents_BCTHW.shape[0],
            latent_size=(latents_BCTHW.shape[-2], latents_BCTHW.shape[-1]),
            generator=torch.Generator().manual_seed(seed),
            uniform_B=None if uniforms is None else torch.as_tensor(uniforms, dtype=torch.float32),
        )
        weight_B = loss_weight(self.settings.sampling.weighting_scheme, timestep_B)
        generator = torch.Generator(device=device).manual_seed(seed ^ 1)
        noise_BCTHW = torch.randn(latents_BCTHW.shape, generator=generator, device=device)
        with self.accelerator.autocast():
            return flow_step(
                setup.velocity,
                latents_BCTHW,
                to_device(setup.conditioning(batch), device),
                sigma_B=sigma_B.to(device),
                timestep_B=timestep_B.to(device),
                noise_BCTHW=noise_BCTHW,
                weight_B=None if weight_B is None else weight_B.to(device),
            )

    def _check_end(self) -> None:
        """Of several processes, some have no batch in an epoch's last round; alone it means that data went missing."""
        if self.accelerator.num_processes == 1:
            raise DataError("The data ended before its epoch did.", "Were cache files removed while training?")

    def _average_gradients(self, had: int, count: int) -> None:
        """The mean over all processes' micro-batches; this one had `had` of `count`.

        The model calls the adapters, not a wrapper around them, so the exchange between GPUs is done here.
        """
        if self.accelerator.num_processes == 1:
            return
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.parameters]
        share = torch.tensor([had / count], device=gradients[0].device)
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), share])
        flat = self.accelerator.reduce(flat, reduction="sum")
        *parts, share = flat.split([*(gradient.numel() for gradient in gradients), 1])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_((part / share).view_as(gradient))

    def _measured(self, losses: list[Tensor], norm: Tensor, count: int) -> tuple[list[float], float]:
        """(loss of each micro-step as the mean over the processes that had one, gradient norm).

        The one moment in a step at which the CPU waits for the GPU.
        """
        device = self.accelerator.device
        values = torch.zeros(2, count + 1, device=device)
        if losses:
            values[0, : len(losses)] = torch.stack(losses)
            values[1, : len(losses)] = 1.0
        values[:, count] = torch.stack([norm.detach().float().to(device), torch.ones((), device=device)])
        if self.accelerator.num_processes > 1:
            values = self.accelerator.reduce(values, reduction="sum")
        sums, shares = values.tolist()
        means = [total / share for total, share in zip(sums, shares, strict=True) if share]
        return means[:-1], means[-1]

    def _rates(self) -> dict[str, float]:
        values = {}
        groups = self.optimizer.param_groups
        for number, (group, rate) in enumerate(zip(groups, self.setup.scheduler.get_last_lr(), strict=False)):
            name = group.get("name", f"group{number}")
            values[f"lr/{name}"] = float(rate)
            if "d" in group and group.get("lr") is not None:  # Prodigy and its kin find d by themselves
                values[f"lr/d*lr/{name}"] = float(group["d"]) * float(group["lr"])
        return values

    def _report(self, losses: list[float], gradient_norm: float, rates: dict[str, float]) -> None:
        self.not_finite = 0
        self.window.extend(losses)
        values = {"loss/current": sum(losses) / len(losses), "loss/average": self.average, **rates}
        values["grad_norm"] = gradient_norm
        if self.settings.scale_weight_norms:
            stats = self.setup.network.clamp_norms(self.settings.scale_weight_norms)
            values["max_norm/keys_scaled"] = float(stats.scaled)
            values["max_norm/average_key_norm"] = stats.average
            values["max_norm/max_key_norm"] = stats.largest
        self._say(Metric(step=self.step, values=values, epoch=self.epoch + 1))
        self._log(values, self.step)

    def _report_not_finite(self, first: int, count: int) -> None:
        self.not_finite += 1
        names = self.setup.item_names(self.epoch, first, count) if self.setup.item_names else []
        named = f" Items: {', '.join(names)}." if names else ""
        self._say(Warning_(message=f"Step {self.step}: the loss is not a finite number; the step was skipped.{named}"))
        if self.not_finite >= NOT_FINITE_LIMIT:
            raise OptionError(
                f"The loss was not a finite number in {self.not_finite} steps in a row, up to step {self.step}.{named}",
                "Lower --learning_rate, use --mixed_precision bf16 instead of fp16, or look at these items' caches.",
            )

    # --- between two steps

    def _after_step(self) -> Path | None:
        """Save and sample where it is due or asked for. A path when a stop was asked for and everything is saved."""
        checkpoints, every = self.setup.checkpoints, self.settings.sample_every_n_steps
        stop, save, sample = self._requests()
        stop = stop and self.step < self.settings.max_steps
        due = checkpoints.due_after_step(self.step)
        sampling = not stop and (sample or (bool(every) and self.step % (every or 1) == 0))
        if not (stop or save or due or sampling):
            return None
        self._modes(training=False)
        path = None
        if stop or save or due:
            state = True if stop or save else None
            path = self._save(lambda: checkpoints.save_step(self.setup.parts, self.position, with_state=state))
        if sampling:
            self._sample(None)
        self._modes(training=True)
        return path if stop else None

    def _requests(self) -> tuple[bool, bool, bool]:
        """What was asked of the main process (stop, save, sample), known to all."""
        control = self.setup.control
        stop, save, sample = control.stop_requested, control.take_save(), control.take_sample()
        if self.accelerator.num_processes > 1:
            flags = torch.tensor([stop, save, sample], dtype=torch.uint8, device=self.accelerator.device)
            stop, save, sample = (bool(flag) for flag in broadcast(flags).tolist())
        return stop, save, sample

    def _save(self, save: Callable[[], Path]) -> Path:
        self.accelerator.wait_for_everyone()
        path = save() if self.accelerator.is_main_process else Path()
        self.accelerator.wait_for_everyone()
        return path

    def _sample(self, epoch: int | None) -> None:
        if self.setup.on_sample is not None:
            self._modes(training=False)
            with torch.no_grad():
                self.setup.on_sample(self.step, epoch)

    def _modes(self, *, training: bool) -> None:
        """Dropout, and the weights that a schedule-free optimizer keeps apart for training and for use."""
        self.setup.network.train(training)
        (self.setup.optimizer.train if training else self.setup.optimizer.eval)()
