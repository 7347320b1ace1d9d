"""`train <family>`: train a LoRA on a dataset's caches. Assembles the parts of a training; training/loop.py runs it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from ..contract.events import Artifact, Control, Log, Say
from ..contract.job import Job
from ..contract.locks import only_one
from ..contract.options import Attention, Launch, Run, Samples, Saving, Timesteps, Training, TrainingPrecision
from ..contract.saved_names import AVERAGE
from ..families import part
from ..ops.device import DTYPES, choose_device, device_of_process
from ..training.checkpoints import Checkpoints, Keep
from ..training.ema import Ema
from ..training.group import Group, is_first_process
from ..training.loop import Setup, train
from ..training.optimizers import BuiltOptimizer
from ..training.schedules import take_rates
from ..training.sigmas import SigmaSampling
from ..training.states import Position, read_owner, read_state
from ..training.trackers import LastingTracker
from . import noise_levels, resuming
from . import training_choices as choices
from .attention_kernels import check_attention, settle_attention
from .experts import Experts
from .recorder import Recorder
from .resuming import Record, Start
from .trained_model import TrainedModel, check_networks
from .training_data import TrainingData, read_training_data
from .training_facts import lora_writer, trained_size, training_facts
from .within_memory import within_memory

if TYPE_CHECKING:
    from .samples import TrainingSamples

HOME = "output_dir"  # the option that names the folder for results


def home(job: Job) -> Path:
    return Path(job[Saving].output_dir)


def run(job: Job, say: Say, control: Control) -> str:
    if job[Training].show_timesteps:
        return noise_levels.show(job, say)
    with _only_training(job):
        return within_memory(job, say, control, _train, remember=lambda: resuming.going_on(job, say))


def _only_training(job: Job) -> contextlib.AbstractContextManager[None]:
    """Lock the output files against a second training of the same name. Of several processes the first does so."""
    if not is_first_process():
        return contextlib.nullcontext()
    folder, name = job[Saving].output_dir, job[Saving].output_name
    return only_one(
        Path(folder) / f".{name}.lock",
        what=f"{name} in {folder} is being trained",
        hint="Wait until it ends or stop it, or choose another --output_name.",
    )


def _train(job: Job, say: Say, control: Control) -> str:
    ready = _prepare(job, say, control)
    group, finished = ready.group, _already_finished(job, ready, say)
    if finished:
        group.leave()
        return finished
    record = resuming.new_record(job, ready.start, ready.data.binding)
    with contextlib.ExitStack() as at_end:
        setup = _setup(job, ready, record, say, control, at_end)
        settings = choices.loop_settings(job, steps=ready.data.steps, seed=ready.data.seed, sampling=ready.sampling)
        position = _restore(ready.start, setup, ready.data.binding, say)
        if group.leads:
            resuming.write_record(job, record)
        outcome = train(setup, settings, start=position)
        if group.leads and not outcome.stopped:
            resuming.write_finished(job, record, say, steps=outcome.step)
        group.leave()
    if outcome.stopped:
        say(Log(message=_how_to_go_on(job[Saving])))
        return f"Stopped after {outcome.step} steps, average loss {outcome.loss_average:.4f}: {outcome.path}"
    return f"Trained {outcome.step} steps, average loss {outcome.loss_average:.4f}: {outcome.path}"


def _how_to_go_on(saving: Saving) -> str:
    without = " without --fresh" if saving.fresh else " without --resume" if saving.resume != resuming.AUTO else ""
    return f"Started again{without}, this training goes on from here."


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """What exists before the DiT is loaded. Any mistake in the job that can be found without the DiT has been by
    then."""

    device: torch.device
    accelerator: Accelerator
    group: Group
    start: Start
    data: TrainingData
    sampling: SigmaSampling
    keep: Keep
    experts: Experts
    samples: TrainingSamples | None


def _prepare(job: Job, say: Say, control: Control) -> _Ready:
    sampling = noise_levels.sigma_sampling(job[Timesteps], say)
    device = device_of_process(choose_device(job[Run].device))
    check_attention(job[Attention].backend, device, learning=True, say=say)
    experts = Experts(
        job,
        device=device,
        weight_format=job[TrainingPrecision].weight_format,
        attention_backend=job[Attention].backend,
        say=say,
    )
    bare_dit = experts.check()
    check_networks(job, experts, bare_dit)
    samples = _samples(job, say, control)
    accelerator = choices.create_accelerator(job, device)
    dtype = DTYPES[accelerator.mixed_precision]
    settle_attention(bare_dit, device, dtype=dtype, backend=job[Attention].backend, learning=True, say=say)
    group = Group(accelerator)
    if group.count > 1:
        each = job[Training].gradient_accumulation_steps
        say(Log(message=f"{group.count} processes train together: a step takes {group.count * each} batches."))
    if job[Launch].shard_base:
        choices.check_shared_base(job)
        experts.share_out(group)
    start = group.broadcast(resuming.find_start(job, say) if group.leads else Start())
    return _Ready(
        device=device,
        accelerator=accelerator,
        group=group,
        start=start,
        data=read_training_data(job, start, group, say, pin_memory=device.type == "cuda"),
        sampling=sampling,
        keep=choices.what_to_keep(job[Saving]),
        experts=experts,
        samples=samples,
    )


def _samples(job: Job, say: Say, control: Control) -> TrainingSamples | None:
    if job[Samples].sample_prompts is None:
        return None
    from .samples import TrainingSamples  # imports everything that generates: most trainings start sooner without

    return TrainingSamples(job, say, control)


def _already_finished(job: Job, ready: _Ready, say: Say) -> str:
    """The closing message for a training that had already finished, after naming its LoRA; else ""."""
    done = ""
    if ready.group.leads:
        done = resuming.finished_already(job, ready.start, ready.data.binding, steps=ready.data.steps)
    done = ready.group.broadcast(done)
    if done:
        say(Artifact(kind="LoRA", path=str(resuming.final_lora(job))))
    return done


def _setup(job: Job, ready: _Ready, record: Record, say: Say, control: Control, at_end: contextlib.ExitStack) -> Setup:
    """The parts of the loop, with the DiT loaded and adapted. What must be closed afterwards is pushed onto
    `at_end`."""
    data, experts, samples, leads = ready.data, ready.experts, ready.samples, ready.group.leads
    optimizer_choice = choices.optimizer_choice(job, ready.group, ready.device, say)
    choices.scheduler_of(job, optimizer_choice.trial(), data.steps)  # so that a mistake shows before the DiT is loaded
    trackers = choices.trackers_of(job, record.started, first_step=ready.start.first_step) if leads else ()
    uploader = choices.open_uploader(job, say) if leads else None
    on_saved = choices.upload_of(job, uploader)
    if uploader is not None:
        at_end.callback(uploader.close)
    if samples is not None and leads:
        samples.encode()
    model = TrainedModel(job, experts, ready.device, data.seed, say)
    optimizer = optimizer_choice.build(model.parameter_groups(job))
    ema = choices.ema_of(job, optimizer)
    recorder = Recorder(say, ready.device)
    if leads:
        at_end.callback(recorder.draw, Path(job[Saving].output_dir) / f"{job[Saving].output_name}_loss.png")
    opened = [LastingTracker(open_tracker(), say) for open_tracker in trackers]
    for tracker in opened:
        at_end.callback(tracker.close)
    return Setup(
        accelerator=ready.accelerator,
        network=model.network,
        optimizer=optimizer,
        scheduler=choices.scheduler_of(job, optimizer, data.steps),
        velocity=model.velocity,
        prior=model.prior if data.preserves_prior else None,
        prior_weight=job[Training].prior_loss_weight,
        conditioning=model.conditioning,
        latent_scale=part(job.family, "options").LATENT_SCALE,
        batches=lambda epoch, first: data.loader.epoch(epoch, position=first),
        item_names=data.item_names,
        batches_per_epoch=len(data.loader),
        checkpoints=_checkpoints(job, ready, model, optimizer, ema, record, on_saved=on_saved, say=say),
        say=recorder,
        control=control,
        trackers=opened,
        ema=ema,
        history=recorder,
        experts=experts.trained(),
        shared=experts.shared,
        validation=data.validation,
        on_sample=None if samples is None else lambda *when: samples.make(experts, *when, trackers=opened),
    )


def _checkpoints(
    job: Job,
    ready: _Ready,
    model: TrainedModel,
    optimizer: BuiltOptimizer,
    ema: Ema | None,
    record: Record,
    *,
    on_saved: Callable[[Path], None],
    say: Say,
) -> Checkpoints:
    """The writer of each expert's LoRA, of its average, and of states."""
    data, experts, saving = ready.data, ready.experts, job[Saving]
    facts = training_facts(job, data, optimizer)
    size = trained_size(job, data.loader)
    writers = {
        expert.ending + ending: lora_writer(
            job, network, facts, size=size, expert=expert, levels=experts.levels(number), ema=average
        )
        for ending, average in [("", None), *([(AVERAGE, ema)] if ema else [])]
        for number, (expert, network) in enumerate(zip(experts.members, model.networks, strict=True))
    }
    return Checkpoints(
        saving.output_dir,
        saving.output_name,
        keep=ready.keep,
        write_lora=writers.pop(""),
        beside=writers,
        on_saved=on_saved,
        owner=resuming.owner_of(record),
        say=say,
    )


def _restore(start: Start, setup: Setup, binding: Mapping[str, Any], say: Say) -> Position | None:
    """Load the state that the training resumes from, if any, into the parts; returns its position."""
    if start.state is None:
        return None
    optimizer = setup.optimizer.optimizer
    rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    resuming.report_changes(start, binding, say)
    position = read_state(start.state, setup.parts)
    before = read_owner(start.state).options
    if before and before["learning_rate"] != binding["learning_rate"]:
        take_rates(setup.scheduler, optimizer, rates)
    return position
