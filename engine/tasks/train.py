"""`train <family>`: a LoRA from the caches of a dataset. Puts the parts of a training together; the loop runs it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from ..contract.errors import OptionError
from ..contract.events import Artifact, Control, Log, Say, Stage
from ..contract.job import Job
from ..contract.locks import only_one
from ..contract.options import (
    Attention,
    Data,
    HuggingFace,
    Launch,
    Logging,
    Network,
    Optimizer,
    Run,
    Samples,
    Saving,
    Timesteps,
    Training,
    TrainingMemory,
    TrainingPrecision,
)
from ..contract.options import Schedule as ScheduleOptions
from ..data.config import load_config
from ..families import part
from ..families.contract import Expert
from ..lora import network as lora
from ..lora.arguments import read_network_arguments
from ..lora.files import read_lora
from ..lora.formats import to_default
from ..lora.merge import report_unmatched
from ..ops.device import choose_device
from ..training import upload
from ..training.checkpoints import Checkpoints, Keep
from ..training.group import Group, device_of_process, is_first_process, join
from ..training.loop import Settings, Setup, count_steps, train
from ..training.optimizers import BuiltOptimizer, OptimizerChoice, choose_optimizer
from ..training.schedules import HeldRate, Schedule, create_scheduler, take_rates
from ..training.states import Position, read_owner, read_state
from ..training.trackers import OpenTracker, choose_trackers
from . import noise_levels, resuming
from .denoiser import tune_backends
from .experts import Experts
from .lora_targets import lora_target
from .recorder import Recorder
from .resuming import Start
from .samples import TrainingSamples
from .training_data import item_names, loader_of, training_items
from .training_facts import lora_writer, trained_size, training_facts
from .within_memory import within_memory

HOME = "output_dir"  # the option that says where results go


def home(job: Job) -> Path:
    return Path(job[Saving].output_dir)


def run(job: Job, say: Say, control: Control) -> str:
    if job[Training].show_timesteps:
        return noise_levels.show(job, say)
    with _only_training(job):
        return within_memory(job, say, control, _train, remember=lambda: resuming.going_on(job, say))


def _only_training(job: Job) -> contextlib.AbstractContextManager[None]:
    """Two trainings that write the same files would spoil each other's. Of several processes the first looks."""
    if not is_first_process():
        return contextlib.nullcontext()
    folder, name = job[Saving].output_dir, job[Saving].output_name
    return only_one(
        Path(folder) / f".{name}.lock",
        what=f"{name} in {folder} is being trained",
        hint="Wait until it ends or stop it, or choose another --output_name.",
    )


def _train(job: Job, say: Say, control: Control) -> str:
    sampling = noise_levels.sigma_sampling(job[Timesteps])
    device = device_of_process(choose_device(job[Run].device))
    experts = Experts(
        job,
        device=device,
        weight_format=job[TrainingPrecision].weight_format,
        attention_backend=job[Attention].backend,
        say=say,
    )
    experts.check()
    samples = TrainingSamples(job, say, control) if job[Samples].sample_prompts is not None else None
    say(Stage(name="Reading the dataset", message=job[Data].dataset_config))
    config = load_config(job[Data].dataset_config, say=say)
    training = job[Training]
    accelerator = _accelerator(job, device)
    group = Group(accelerator)
    start = group.told_by_first(resuming.find_start(job, say) if group.leads else resuming.Start())
    seed = group.told_by_first(_seed(job, start))
    items, validation = training_items(job, config, say)
    loader = loader_of(job, config, items, seed, group, pin_memory=device.type == "cuda")
    steps, epochs = count_steps(
        len(loader),
        accumulation=training.gradient_accumulation_steps * group.count,
        max_train_steps=training.max_train_steps,
        max_train_epochs=training.max_train_epochs,
    )
    asked_seed = seed if training.seed is None else training.seed
    sizes = [dataset.batch_size for dataset in config.datasets]
    binding = resuming.binding_options(job, items, batch_sizes=sizes, seed=asked_seed)
    done = group.told_by_first(resuming.finished_already(job, start, binding, steps=steps) if group.leads else "")
    if done:
        say(Artifact(kind="LoRA", path=str(resuming.final_lora(job))))  # whoever started it wants to know where it is
        group.leave()
        return done
    record = resuming.new_record(job, start, binding)
    checkpoints_ready = _keep(job[Saving])
    chosen = _chosen_optimizer(job, group, device, say)
    _scheduler(job, chosen.trial(), steps)  # a mistake shows now, before the DiT is loaded
    trackers = _trackers(job, record.started, first_step=start.first_step) if group.leads else ()
    uploader = _uploader(job, say) if group.leads else None
    if samples is not None and group.leads:
        samples.encode()
    model = _Trained(job, experts, device, seed, say)
    groups = model.network.parameter_groups(job[Optimizer].learning_rate, _loraplus_ratio(job[Network]))
    optimizer = chosen.build(groups)
    recorder = Recorder(say, device)
    facts = training_facts(job, config, loader, optimizer, steps=steps, epochs=epochs, seed=seed)
    writer, *writers = (
        lora_writer(job, network, facts, size=trained_size(job, loader), expert=expert, levels=experts.levels(number))
        for number, (expert, network) in enumerate(zip(experts.members, model.networks, strict=True))
    )
    setup = Setup(
        accelerator=accelerator,
        network=model.network,
        optimizer=optimizer,
        scheduler=_scheduler(job, optimizer, steps),
        velocity=model.velocity,
        conditioning=model.conditioning,
        latent_scale=part(job.family, "options").LATENT_SCALE,
        batches=lambda epoch, first: loader.epoch(epoch, position=first),
        item_names=lambda epoch, first, count: item_names(loader, epoch, first, count),
        batches_per_epoch=len(loader),
        checkpoints=Checkpoints(
            job[Saving].output_dir,
            job[Saving].output_name,
            keep=checkpoints_ready,
            write_lora=writer,
            beside={e.ending: write for e, write in zip(experts.members[1:], writers, strict=True)},
            on_saved=_upload_of(job, uploader),
            owner=resuming.owner_of(record),
            say=say,
        ),
        say=recorder,
        control=control,
        trackers=[open_tracker() for open_tracker in trackers],
        history=recorder,
        experts=experts.trained(),
        validation=validation,
        on_sample=None if samples is None else lambda *when: samples.make(experts, *when, trackers=setup.trackers),
    )
    settings = Settings(
        max_steps=steps,
        seed=seed,
        sampling=sampling,
        accumulation=training.gradient_accumulation_steps,
        max_grad_norm=job[Optimizer].max_grad_norm,
        fused_backward_pass=job[Optimizer].fused_backward_pass,
        scale_weight_norms=job[Network].scale_weight_norms,
        sample_every_n_steps=job[Samples].sample_every_n_steps,
        sample_every_n_epochs=job[Samples].sample_every_n_epochs,
        sample_at_first=job[Samples].sample_at_first,
        max_not_finite_steps=training.max_not_finite_steps,
        max_minutes=training.max_train_minutes,
        save_state_every_minutes=job[Saving].save_state_every_minutes,
    )
    position = _taken_up(start, setup, binding, say)
    if group.leads:
        resuming.write_record(job, record)
    try:
        outcome = train(setup, settings, start=position)
        if group.leads and not outcome.stopped:
            resuming.write_finished(job, record, steps=outcome.step)
        group.leave()
    finally:
        for tracker in setup.trackers:
            tracker.close()
        if uploader is not None:
            uploader.close()
        if group.leads:
            recorder.draw(Path(job[Saving].output_dir) / f"{job[Saving].output_name}_loss.png")
    verb = "Stopped after" if outcome.stopped else "Trained"
    return f"{verb} {outcome.step} steps, average loss {outcome.loss_average:.4f}: {outcome.path}"


class _Trained:
    """The frozen DiT with its adapters, wrapped as the job says."""

    def __init__(self, job: Job, experts: Experts, device: torch.device, seed: int, say: Say):
        self._model = part(job.family, "model")
        self._arguments = part(job.family, "options").conditioning_arguments(job)
        memory = job[TrainingMemory]
        tune_backends(memory)
        self.experts = experts
        self.dit = experts.dit
        self.networks = [
            _network(job, expert, self.dit, seed + number, say).to(device)
            for number, expert in enumerate(experts.members)
        ]
        self.network = experts.adapt(self.networks)
        experts.arrange(
            slots=memory.block_swap_ring_size, pinned=memory.block_swap_h2d_only, checkpointing=memory.checkpointing
        )

    def velocity(self, x_BCTHW: torch.Tensor, timestep_B: torch.Tensor, cond: dict[str, Any]) -> torch.Tensor:
        return self._model.velocity(self.dit, x_BCTHW, timestep_B, cond)

    def conditioning(self, batch: dict[str, Any]) -> dict[str, Any]:
        return self._model.cond_from_batch(batch, **self._arguments)


def _taken_up(start: Start, setup: Setup, binding: Mapping[str, Any], say: Say) -> Position | None:
    """Fill the parts from the state that the training goes on from, if any."""
    if start.state is None:
        return None
    optimizer = setup.optimizer.optimizer
    rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    resuming.told_changes(start, binding, say)
    position = read_state(start.state, setup.parts)
    before = read_owner(start.state).options
    if before and before["learning_rate"] != binding["learning_rate"]:
        take_rates(setup.scheduler, optimizer, rates)
    return position


def _seed(job: Job, start: Start) -> int:
    """That of the state where the training goes on; else the job's, or that of an earlier try, or a new one."""
    given = job[Training].seed
    if start.seed is not None and (start.state is not None or given is None):
        return start.seed
    return random.SystemRandom().randrange(2**32) if given is None else given


def _accelerator(job: Job, device: torch.device) -> Accelerator:
    bf16 = device.type == "cuda" or job[Optimizer].full_bf16
    chosen = job[TrainingPrecision].mixed_precision or ("bf16" if bf16 else "no")
    return join(device, mixed_precision=chosen, timeout_minutes=job[Launch].ddp_timeout)


def _keep(saving: Saving) -> Keep:
    return Keep(
        save_every_n_steps=saving.save_every_n_steps,
        save_every_n_epochs=saving.save_every_n_epochs,
        save_last_n_steps=saving.save_last_n_steps,
        save_last_n_epochs=saving.save_last_n_epochs,
        save_last_n_steps_state=saving.save_last_n_steps_state,
        save_last_n_epochs_state=saving.save_last_n_epochs_state,
        save_state=saving.save_state,
        save_state_on_train_end=saving.save_state_on_train_end,
        save_last_n_states=saving.save_last_n_states,
    )


def _network(job: Job, expert: Expert, dit: nn.Module, seed: int, say: Say) -> lora.LoraNetwork:
    """New adapters for one expert, or those of its `--network_weights`."""
    options, keys = job[Network], part(job.family, "keys")
    arguments = read_network_arguments(options.network_module, options.network_args)
    given = None
    if expert.network_weights:
        role = f"--network_weights{expert.ending}"
        given = read_lora(expert.network_weights, lora_target(job.family, dit), role=role)
    if given and options.dim_from_weights:
        network = lora.create_like(dit, given.modules, dropout=options.network_dropout, seed=seed, **arguments.like)
    else:
        network = lora.create(
            dit,
            block_classes=keys.LORA_BLOCKS,
            exclude="" if arguments.all_linear else keys.LORA_EXCLUDE,
            dim=options.rank,
            alpha=options.network_alpha,
            dropout=options.network_dropout,
            seed=seed,
            **arguments.create,
        )
    if given:
        report_unmatched(given, say)
        network.load_state(to_default(given.modules))
    count = sum(parameter.numel() for parameter in network.parameters())
    kinds, ranks = " and ".join(network.kinds), ", ".join(map(str, network.ranks))
    say(Log(message=f"{kinds} of rank {ranks} on {len(network.paths)} modules, {count / 1e6:.1f} M parameters."))
    if arguments.values.get("verbose"):
        for name, path in network.paths.items():
            say(Log(message=f"{name}: {path}"))
    return network


def _chosen_optimizer(job: Job, group: Group, device: torch.device, say: Say) -> OptimizerChoice:
    options = job[Optimizer]
    if options.fused_backward_pass and group.count > 1:
        raise OptionError(
            f"--fused_backward_pass uses each gradient at once, but {group.count} processes add theirs up.",
            "Leave it out, or train in one process.",
        )
    chosen = choose_optimizer(
        options.optimizer_type,
        options.optimizer_args,
        lr=options.learning_rate,
        lr_scheduler=job[ScheduleOptions].lr_scheduler,
        max_grad_norm=options.max_grad_norm,
        rates=_rates(job),
        device=device,
        fused=options.fused_backward_pass,
        full_bf16=options.full_bf16,
    )
    for note in chosen.notes:
        say(Log(message=note))
    return chosen


def _scheduler(job: Job, built: BuiltOptimizer, steps: int) -> LRScheduler | HeldRate:
    options = job[ScheduleOptions]
    schedule = Schedule(
        name=built.forced_schedule or options.lr_scheduler,
        warmup=options.lr_warmup_steps,
        decay=options.lr_decay_steps,
        cycles=options.lr_scheduler_num_cycles,
        power=options.lr_scheduler_power,
        timescale=options.lr_scheduler_timescale,
        min_ratio=options.lr_scheduler_min_lr_ratio,
        arguments=options.lr_scheduler_args,
        class_path=options.lr_scheduler_type,
    )
    return create_scheduler(schedule, built.optimizer, total_steps=steps, schedule_free=built.schedule_free)


def _rates(job: Job) -> list[float]:
    """The learning rates of the groups that there will be."""
    rate, options = job[Optimizer].learning_rate, job[Network]
    arguments = read_network_arguments(options.network_module, options.network_args)
    return [rate, rate * (arguments.loraplus_lr_ratio or 1.0), *arguments.create["rates"].values()]


def _loraplus_ratio(network: Network) -> float | None:
    return read_network_arguments(network.network_module, network.network_args).loraplus_lr_ratio


def _uploader(job: Job, say: Say) -> upload.Uploader | None:
    """What uploads saved files, when the job names a repository for them."""
    options = job[HuggingFace]
    if options.huggingface_repo_id is None:
        return None
    repository = upload.Repository(
        name=options.huggingface_repo_id,
        kind=options.huggingface_repo_type,
        folder=options.huggingface_path_in_repo or "",
        private=options.huggingface_repo_visibility == "private",
    )
    api = upload.hub(options.huggingface_token)
    return upload.open_uploader(api, repository, in_background=options.async_upload, say=say)


def _upload_of(job: Job, uploader: upload.Uploader | None) -> Callable[[Path], None]:
    """What happens to a LoRA file or a state folder that was just saved."""

    def on_saved(path: Path) -> None:
        if uploader is not None and (path.is_file() or job[HuggingFace].save_state_to_huggingface):
            uploader.upload(path)

    return on_saved


def _trackers(job: Job, started: str, *, first_step: int) -> Sequence[OpenTracker]:
    options = job[Logging]
    return choose_trackers(
        options.log_with,
        logging_dir=options.logging_dir,
        log_prefix=options.log_prefix or "",
        tracker_name=options.log_tracker_name,
        wandb_run_name=options.wandb_run_name or "",
        wandb_api_key=options.wandb_api_key or "",
        config=job.shown() if options.log_config else None,
        tracker_config=options.log_tracker_config,
        started=started,
        first_step=first_step,
    )
