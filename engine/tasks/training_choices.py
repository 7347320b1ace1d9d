"""What the options of a training choose, in the words of `training/`: each function reads some sections of the job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LRScheduler

from ..contract.errors import OptionError
from ..contract.events import Log, Say
from ..contract.job import Job
from ..contract.options import (
    HuggingFace,
    Launch,
    Logging,
    Network,
    Optimizer,
    Samples,
    Saving,
    Training,
    TrainingMemory,
    TrainingPrecision,
)
from ..contract.options import Schedule as ScheduleOptions
from ..lora.arguments import read_network_arguments
from ..training import upload
from ..training.checkpoints import Keep
from ..training.ema import Ema
from ..training.group import Group, join
from ..training.loop import Settings
from ..training.optimizers import BuiltOptimizer, OptimizerChoice, choose_optimizer
from ..training.schedules import HeldRate, Schedule, create_scheduler
from ..training.sigmas import SigmaSampling
from ..training.trackers import OpenTracker, choose_trackers


def create_accelerator(job: Job, device: torch.device) -> Accelerator:
    bf16 = device.type == "cuda" or job[Optimizer].full_bf16
    chosen = job[TrainingPrecision].mixed_precision or ("bf16" if bf16 else "no")
    return join(device, mixed_precision=chosen, timeout_minutes=job[Launch].ddp_timeout)


def loop_settings(job: Job, *, steps: int, seed: int, sampling: SigmaSampling) -> Settings:
    """The numbers of the loop; the three that are given come from the dataset and from where the training begins."""
    training, samples = job[Training], job[Samples]
    return Settings(
        max_steps=steps,
        seed=seed,
        sampling=sampling,
        accumulation=training.gradient_accumulation_steps,
        max_grad_norm=job[Optimizer].max_grad_norm,
        fused_backward_pass=job[Optimizer].fused_backward_pass,
        scale_weight_norms=job[Network].scale_weight_norms,
        sample_every_n_steps=samples.sample_every_n_steps,
        sample_every_n_epochs=samples.sample_every_n_epochs,
        sample_at_first=samples.sample_at_first,
        max_not_finite_steps=training.max_not_finite_steps,
        exploding_loss_factor=training.exploding_loss_factor,
        max_minutes=training.max_train_minutes,
        save_state_every_minutes=job[Saving].save_state_every_minutes,
    )


def what_to_keep(saving: Saving) -> Keep:
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


def optimizer_choice(job: Job, group: Group, device: torch.device, say: Say) -> OptimizerChoice:
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
        cpu_offload=job[TrainingMemory].optimizer_cpu_offload,
        loss_scaler=job[TrainingPrecision].mixed_precision == "fp16",
    )
    if chosen.schedule_free and job[Network].use_ema:
        raise OptionError(
            f"--use_ema averages the weights, but --optimizer_type {options.optimizer_type} does so already: what it "
            "saves and shows is its own average.",
            "Leave out --use_ema, or choose another --optimizer_type, such as AdamW.",
            names=("use_ema", "optimizer_type"),
        )
    for note in chosen.notes:
        say(Log(message=note))
    return chosen


def ema_of(job: Job, optimizer: BuiltOptimizer) -> Ema | None:
    """What averages the weights while they are trained, with `--use_ema`."""
    network = job[Network]
    device = "cpu" if network.ema_device == "cpu" else None
    return Ema(optimizer.parameters, decay=network.ema_decay, device=device) if network.use_ema else None


def check_shared_base(job: Job) -> None:
    """OptionError for adapters that need the base's weights whole before the first step."""
    options = job[Network]
    arguments = read_network_arguments(options.network_module, options.network_args)
    if arguments.create["decompose"] and not options.network_weights:
        raise OptionError(
            "DoRA starts from the norms of the base's weights, which no process holds entirely with --shard_base.",
            "Leave out dora_wd=True in --network_args, or --shard_base.",
            names=("shard_base", "network_args"),
        )


def scheduler_of(job: Job, built: BuiltOptimizer, steps: int) -> LRScheduler | HeldRate:
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


def open_uploader(job: Job, say: Say) -> upload.Uploader | None:
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


def upload_of(job: Job, uploader: upload.Uploader | None) -> Callable[[Path], None]:
    """What happens to a LoRA file or a state folder that was just saved."""

    def on_saved(path: Path) -> None:
        if uploader is not None and (path.is_file() or job[HuggingFace].save_state_to_huggingface):
            uploader.upload(path)

    return on_saved


def trackers_of(job: Job, started: str, *, first_step: int) -> Sequence[OpenTracker]:
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
