"""`train <family>`: a LoRA from the caches of a dataset. Puts the parts of a training together; the loop runs it."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ..contract.errors import DataError
from ..contract.events import Artifact, Control, Event, Log, Metric, Resource, Say, Stage
from ..contract.job import Job
from ..contract.options import (
    Attention,
    Data,
    Logging,
    Metadata,
    Network,
    Optimizer,
    Run,
    Saving,
    Timesteps,
    Training,
    TrainingMemory,
    TrainingModels,
    TrainingPrecision,
)
from ..contract.options import Schedule as ScheduleOptions
from ..data.batches import BatchSampler, TrainItem, load_items
from ..data.collate import Loader
from ..data.config import DatasetConfig, load_config
from ..families import part
from ..lora import network as lora
from ..lora.files import read_lora, write_lora
from ..media.charts import loss_curve
from ..ops.device import choose_device, dtype_of, memory_in_use
from ..training.checkpoints import Checkpoints, Keep
from ..training.loop import Settings, Setup, count_steps, train
from ..training.metadata import ModelSpec, TrainingFacts, lora_metadata
from ..training.optimizers import BuiltOptimizer, create_optimizer
from ..training.schedules import Schedule, create_scheduler
from ..training.sigmas import SigmaSampling, describe
from ..training.states import read_position, read_state
from ..training.trackers import Tracker, open_trackers
from .denoiser import arrange_blocks, load_dit, meta_dit, read_loras, tune_backends

RESOURCES_EVERY_S = 5.0


def home(job: Job) -> Path:
    return Path(job[Saving].output_dir)


def run(job: Job, say: Say, control: Control) -> str:
    sampling = sigma_sampling(job[Timesteps])
    if job[Training].show_timesteps:
        for line in describe(sampling):
            say(Log(message=line))
        return "Nothing was trained: --show_timesteps only draws."
    meta_dit(job, job[TrainingModels].dit)
    say(Stage(name="Reading the dataset", message=job[Data].dataset_config))
    config = load_config(job[Data].dataset_config, say=say)
    training = job[Training]
    seed = _seed(job)
    device = choose_device(job[Run].device)
    accelerator = _accelerator(job[TrainingPrecision], device)
    loader = _loader(job, config, seed, say=say, pin_memory=device.type == "cuda")
    steps, epochs = count_steps(
        len(loader),
        accumulation=training.gradient_accumulation_steps,
        max_train_steps=training.max_train_steps,
        max_train_epochs=training.max_train_epochs,
    )
    checkpoints_ready = _keep(job[Saving])
    _rehearse_optimizer(job, steps)
    model = _Trained(job, device, seed, say)
    optimizer, scheduler = _optimizer(job, model.network.parameter_groups, steps, say)
    recorder = Recorder(say, device)
    facts = _facts(job, config, loader, optimizer, steps=steps, epochs=epochs, seed=seed)
    setup = Setup(
        accelerator=accelerator,
        network=model.network,
        optimizer=optimizer,
        scheduler=scheduler,
        velocity=model.velocity,
        conditioning=model.conditioning,
        latent_scale=part(job.family, "options").LATENT_SCALE,
        batches=lambda epoch, first: loader.epoch(epoch, position=first),
        item_names=lambda epoch, first, count: _item_names(loader, epoch, first, count),
        batches_per_epoch=len(loader),
        checkpoints=Checkpoints(
            job[Saving].output_dir,
            job[Saving].output_name,
            keep=checkpoints_ready,
            write_lora=_writer(job, model.network, facts),
            say=say,
        ),
        say=recorder,
        control=control,
        trackers=_trackers(job),
    )
    settings = Settings(
        max_steps=steps,
        seed=seed,
        sampling=sampling,
        accumulation=training.gradient_accumulation_steps,
        max_grad_norm=job[Optimizer].max_grad_norm,
        scale_weight_norms=job[Network].scale_weight_norms,
    )
    start = read_state(Path(job[Saving].resume), setup.parts) if job[Saving].resume else None
    try:
        outcome = train(setup, settings, start=start)
    finally:
        for tracker in setup.trackers:
            tracker.close()
        recorder.draw(Path(job[Saving].output_dir) / f"{job[Saving].output_name}_loss.png")
    verb = "Stopped after" if outcome.stopped else "Trained"
    return f"{verb} {outcome.step} steps, average loss {outcome.loss_average:.4f}: {outcome.path}"


class _Trained:
    """The frozen DiT with its adapters, wrapped as the job says."""

    def __init__(self, job: Job, device: torch.device, seed: int, say: Say):
        self._model = part(job.family, "model")
        self._arguments = part(job.family, "options").conditioning_arguments(job)
        memory, models, network = job[TrainingMemory], job[TrainingModels], job[Network]
        tune_backends(memory)
        merged = read_loras(
            job, models.dit, network.base_weights, network.base_weights_multiplier, role="--base_weights", say=say
        )
        self.dit = load_dit(
            job,
            models.dit,
            device=device,
            loras=merged,
            weight_format=job[TrainingPrecision].weight_format,
            attention_backend=job[Attention].backend,
            say=say,
        )
        self.network = _network(job, self.dit, seed, say).to(device)
        offload = "offload" if memory.gradient_checkpointing_cpu_offload else "keep"
        self._stream = arrange_blocks(
            job,
            self.dit,
            device=device,
            slots=memory.block_swap_ring_size,
            pinned=memory.block_swap_h2d_only,
            checkpointing=offload if memory.gradient_checkpointing else "",
        )

    def velocity(self, x_BCTHW: torch.Tensor, timestep_B: torch.Tensor, cond: dict[str, Any]) -> torch.Tensor:
        return self._model.velocity(self.dit, x_BCTHW, timestep_B, cond)

    def conditioning(self, batch: dict[str, Any]) -> dict[str, Any]:
        return self._model.cond_from_batch(batch, **self._arguments)


class Recorder:
    """Passes events on, adds what memory is in use, and remembers the losses for the curve at the end."""

    def __init__(self, say: Say, device: torch.device):
        self._say, self._device = say, device
        self._looked_at_s = -RESOURCES_EVERY_S
        self._steps: list[int] = []
        self._losses: list[float] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Metric) and "loss/current" in event.values:
            self._steps.append(event.step)
            self._losses.append(event.values["loss/current"])
            self._look()
        self._say(event)

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked_at_s >= RESOURCES_EVERY_S:
            self._looked_at_s = now
            self._say(Resource(values=memory_in_use(self._device)))

    def draw(self, path: Path) -> None:
        """The loss curve as a PNG; nothing when there are too few steps to make a line."""
        if len(self._steps) > 1:
            loss_curve(self._steps, self._losses, path, title=path.stem.removesuffix("_loss"))
            self._say(Artifact(kind="loss curve", path=str(path)))


def _seed(job: Job) -> int:
    """The job's seed; that of the state when it goes on from one; else a new one."""
    if job[Saving].resume:
        return read_position(Path(job[Saving].resume)).seed
    given = job[Training].seed
    return random.SystemRandom().randrange(2**32) if given is None else given


def sigma_sampling(options: Timesteps) -> SigmaSampling:
    """The noise levels that the options describe."""
    return SigmaSampling(
        mode=options.timestep_sampling,
        weighting_scheme=options.weighting_scheme,
        discrete_flow_shift=options.discrete_flow_shift,
        sigmoid_scale=options.sigmoid_scale,
        logit_mean=options.logit_mean,
        logit_std=options.logit_std,
        mode_scale=options.mode_scale,
        min_timestep=options.min_timestep,
        max_timestep=options.max_timestep,
        preserve_shape=options.preserve_distribution_shape,
    )


def _accelerator(precision: TrainingPrecision, device: torch.device) -> Accelerator:
    chosen = precision.mixed_precision or ("bf16" if device.type == "cuda" else "no")
    return Accelerator(mixed_precision=chosen, cpu=device.type == "cpu")


def _loader(job: Job, config: DatasetConfig, seed: int, *, say: Say, pin_memory: bool) -> Loader:
    options = part(job.family, "options")
    items = load_items(config, architecture=options.ARCHITECTURE, say=say, family=job.family)
    _check_items(job, items)
    sampler = BatchSampler(
        items,
        batch_sizes=[dataset.batch_size for dataset in config.datasets],
        seed=seed,
        num_timestep_buckets=job[Timesteps].num_timestep_buckets,
    )
    return Loader(sampler, workers=min(4, max(1, job[Training].max_data_loader_n_workers)), pin_memory=pin_memory)


def _check_items(job: Job, items: Sequence[TrainItem]) -> None:
    """Caches may be good for another variant of the family. DataError names the first that will not do for this one."""
    check = part(job.family, "model").check_cache
    arguments = part(job.family, "options").conditioning_arguments(job)
    for item in items:
        lacks = check(item.shapes, **arguments)
        if lacks:
            raise DataError(f"{item.latent_path.name} cannot be trained on: {lacks}", "Then train again.")


def _item_names(loader: Loader, epoch: int, first: int, count: int) -> list[str]:
    """The cache files in some batches, for messages about them."""
    batches = loader.sampler.epoch(epoch, position=first)[:count]
    return [item.latent_path.name for batch in batches for item in batch.items]


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
    )


def _network(job: Job, dit: nn.Module, seed: int, say: Say) -> lora.LoraNetwork:
    """New adapters, or those of `--network_weights`."""
    options, keys = job[Network], part(job.family, "keys")
    lora.check_network_module(options.network_module)
    arguments = _network_arguments(options)
    given = None
    if options.network_weights:
        names = [name for name, _ in dit.named_modules()]
        given = read_lora(options.network_weights, module_names=names, role="--network_weights", rename=keys.dit_name)
    network = lora.create(
        dit,
        block_classes=keys.LORA_BLOCKS,
        exclude=[keys.LORA_EXCLUDE, *arguments.pop("exclude_patterns", [])],
        include=arguments.pop("include_patterns", []),
        dim=options.rank,
        alpha=options.network_alpha,
        dropout=options.network_dropout,
        dims=given.dims if given and options.dim_from_weights else None,
        seed=seed,
        **arguments,
    )
    if given:
        network.load_state(given.kohya())
    count = sum(parameter.numel() for parameter in network.parameters())
    say(Log(message=f"LoRA of rank {options.rank} on {len(network.paths)} modules, {count / 1e6:.1f} M parameters."))
    return network


NOT_FOR_CREATE = ("loraplus_lr_ratio", "verbose")


def _network_arguments(options: Network) -> dict[str, Any]:
    values = lora.parse_network_args(options.network_args)
    return {key: value for key, value in values.items() if key not in NOT_FOR_CREATE}


def _rehearse_optimizer(job: Job, steps: int) -> None:
    """Make optimizer and schedule for a single number: a mistake in their options shows before the DiT is loaded."""

    def groups(lr: float, loraplus_lr_ratio: float | None) -> list[dict[str, Any]]:
        return [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr}]

    _optimizer(job, groups, steps, lambda event: None)


Groups = Callable[[float, "float | None"], list[dict[str, Any]]]


def _optimizer(job: Job, groups: Groups, steps: int, say: Say) -> tuple[BuiltOptimizer, Any]:
    options, schedule = job[Optimizer], job[ScheduleOptions]
    ratio = lora.parse_network_args(job[Network].network_args).get("loraplus_lr_ratio")
    built = create_optimizer(
        options.optimizer_type,
        options.optimizer_args,
        groups(options.learning_rate, ratio),
        lr=options.learning_rate,
        lr_scheduler=schedule.lr_scheduler,
        max_grad_norm=options.max_grad_norm,
    )
    for note in built.notes:
        say(Log(message=note))
    scheduler = create_scheduler(
        Schedule(
            name=built.forced_schedule or schedule.lr_scheduler,
            warmup=schedule.lr_warmup_steps,
            decay=schedule.lr_decay_steps,
            cycles=schedule.lr_scheduler_num_cycles,
            power=schedule.lr_scheduler_power,
            timescale=schedule.lr_scheduler_timescale,
            min_ratio=schedule.lr_scheduler_min_lr_ratio,
            arguments=schedule.lr_scheduler_args,
            class_path=schedule.lr_scheduler_type,
        ),
        built.optimizer,
        total_steps=steps,
        schedule_free=built.schedule_free,
    )
    return built, scheduler


def _trackers(job: Job) -> Sequence[Tracker]:
    options = job[Logging]
    return open_trackers(
        options.log_with,
        logging_dir=options.logging_dir,
        log_prefix=options.log_prefix or "",
        tracker_name=options.log_tracker_name or "network_train",
        wandb_run_name=options.wandb_run_name or "",
        wandb_api_key=options.wandb_api_key or "",
        config=job.values() if options.log_config else None,
    )


def _facts(
    job: Job,
    config: DatasetConfig,
    loader: Loader,
    optimizer: BuiltOptimizer,
    *,
    steps: int,
    epochs: int,
    seed: int,
) -> TrainingFacts:
    """What the LoRA file says about how it came to be."""
    options = part(job.family, "options")
    training, timesteps, memory = job[Training], job[Timesteps], job[TrainingMemory]
    network, arguments = job[Network], lora.parse_network_args(job[Network].network_args)
    datasets = [
        {"resolution": list(dataset.resolution), "batch_size": dataset.batch_size, "num_repeats": dataset.num_repeats}
        for dataset in config.datasets
    ]
    return TrainingFacts(
        base_model_version=options.ARCHITECTURE,
        network_module=network.network_module,
        network_dim=network.rank,
        network_alpha=network.network_alpha,
        network_args=json.dumps(arguments) if arguments else "",
        network_dropout=network.network_dropout,
        session_id=random.randrange(2**32),
        training_started_at=time.time(),
        output_name=job[Saving].output_name,
        learning_rate=job[Optimizer].learning_rate,
        num_train_items=loader.sampler.num_items,
        num_batches_per_epoch=len(loader),
        num_epochs=epochs,
        gradient_checkpointing=memory.gradient_checkpointing,
        gradient_checkpointing_cpu_offload=memory.gradient_checkpointing_cpu_offload,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        max_train_steps=steps,
        lr_warmup_steps=job[ScheduleOptions].lr_warmup_steps,
        lr_scheduler=optimizer.forced_schedule or job[ScheduleOptions].lr_scheduler,
        mixed_precision=job[TrainingPrecision].mixed_precision,
        seed=seed,
        training_comment=job[Metadata].training_comment,
        optimizer=optimizer.description,
        max_grad_norm=job[Optimizer].max_grad_norm,
        fp8_base=job[TrainingPrecision].weight_format != "stored",
        weighting_scheme=timesteps.weighting_scheme,
        logit_mean=timesteps.logit_mean,
        logit_std=timesteps.logit_std,
        mode_scale=timesteps.mode_scale,
        guidance_scale=timesteps.guidance_scale,
        timestep_sampling=timesteps.timestep_sampling,
        sigmoid_scale=timesteps.sigmoid_scale,
        discrete_flow_shift=timesteps.discrete_flow_shift,
        datasets=json.dumps(datasets),
        sd_model_name=Path(job[TrainingModels].dit).name,
        vae_name=Path(job[TrainingModels].vae).name if job[TrainingModels].vae else "",
    )


def _writer(job: Job, network: lora.LoraNetwork, facts: TrainingFacts) -> Callable[[Path, int, int], None]:
    """What writes one LoRA file of this training, with everything it says about itself."""
    metadata, options, limits = job[Metadata], part(job.family, "options"), job[Timesteps]
    limited = limits.min_timestep is not None or limits.max_timestep is not None
    spec = ModelSpec(
        architecture=options.MODELSPEC_ARCHITECTURE,
        implementation=options.MODELSPEC_IMPLEMENTATION,
        title=metadata.metadata_title or job[Saving].output_name,
        custom_architecture=metadata.metadata_arch or "",
        author=metadata.metadata_author or "",
        description=metadata.metadata_description or "",
        license=metadata.metadata_license or "",
        tags=metadata.metadata_tags or "",
        resolution=metadata.metadata_reso or "",
        timesteps=(limits.min_timestep or 0, 1000 if limits.max_timestep is None else limits.max_timestep)
        if limited
        else None,
    )
    dtype = dtype_of(job[Saving].save_precision, torch.float32, flag="--save_precision")

    def write(path: Path, step: int, epoch: int) -> None:
        said = lora_metadata(facts, spec, steps=step, epoch=epoch, no_metadata=metadata.no_metadata)
        write_lora(path, network.state(), metadata=said, dtype=dtype)

    return write
