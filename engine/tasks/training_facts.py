"""What a LoRA file says about how it came to be, from a training's job, and the function that writes such a file."""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from ..contract.job import Job
from ..contract.options import (
    Metadata,
    Network,
    Optimizer,
    Saving,
    Timesteps,
    Training,
    TrainingMemory,
    TrainingModels,
    TrainingPrecision,
)
from ..contract.options import Schedule as ScheduleOptions
from ..contract.saved_names import AVERAGE
from ..data.collate import Loader
from ..families import part
from ..families.values import Expert
from ..lora import network as lora
from ..lora.arguments import MODULES, parse_network_args
from ..lora.files import write_lora
from ..lora.formats import named
from ..ops.device import dtype_of
from ..training.ema import Ema
from ..training.metadata import ModelSpec, TrainingFacts, lora_metadata
from ..training.optimizers import BuiltOptimizer
from .training_data import TrainingData


def training_facts(job: Job, data: TrainingData, optimizer: BuiltOptimizer) -> TrainingFacts:
    """What the LoRA file says about how it came to be."""
    options = part(job.family, "options")
    training, timesteps, memory = job[Training], job[Timesteps], job[TrainingMemory]
    network, arguments = job[Network], parse_network_args(job[Network].network_args)
    datasets = [
        {"resolution": list(dataset.resolution), "batch_size": dataset.batch_size, "num_repeats": dataset.num_repeats}
        for dataset in data.config.datasets
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
        num_train_items=data.loader.sampler.num_items,
        num_batches_per_epoch=len(data.loader),
        num_epochs=data.epochs,
        gradient_checkpointing=memory.gradient_checkpointing,
        gradient_checkpointing_cpu_offload=memory.gradient_checkpointing_cpu_offload,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        max_train_steps=data.steps,
        lr_warmup_steps=job[ScheduleOptions].lr_warmup_steps,
        lr_scheduler=optimizer.forced_schedule or job[ScheduleOptions].lr_scheduler,
        mixed_precision=job[TrainingPrecision].mixed_precision,
        seed=data.seed,
        training_comment=job[Metadata].training_comment,
        optimizer=optimizer.description,
        max_grad_norm=job[Optimizer].max_grad_norm,
        fp8_base=job[TrainingPrecision].weight_format != "stored",
        full_bf16=job[Optimizer].full_bf16,
        weighting_scheme=timesteps.weighting_scheme,
        logit_mean=timesteps.logit_mean,
        logit_std=timesteps.logit_std,
        mode_scale=timesteps.mode_scale,
        guidance_scale=timesteps.guidance_scale,
        timestep_sampling=timesteps.timestep_sampling,
        sigmoid_scale=timesteps.sigmoid_scale,
        discrete_flow_shift=timesteps.discrete_flow_shift,
        datasets=json.dumps(datasets),
        vae_name=Path(job[TrainingModels].vae).name if job[TrainingModels].vae else "",
    )


def trained_size(job: Job, loader: Loader) -> tuple[int, int]:
    """Width and height in pixels of the largest clips that are trained on."""
    stride = part(job.family, "vae").SPACE_STRIDE
    width, height = loader.sampler.largest_size
    return width * stride, height * stride


def lora_writer(
    job: Job,
    network: lora.LoraNetwork,
    facts: TrainingFacts,
    *,
    size: tuple[int, int],
    expert: Expert,
    levels: tuple[float, float],
    ema: Ema | None = None,
) -> Callable[[Path, int, int], None]:
    """What writes one LoRA file of this training, with everything it says about itself.

    `size`: width and height in pixels of what was trained on, where `--metadata_reso` says nothing else. `expert` is
    whose LoRA it is, and `levels` the sigmas that it works at. With `ema` it writes the average instead.
    """
    metadata, options, limits = job[Metadata], part(job.family, "options"), job[Timesteps]
    lowest = max(limits.min_timestep or 0, 1000 * levels[0])
    highest = min(1000 if limits.max_timestep is None else limits.max_timestep, 1000 * levels[1])
    ending = expert.ending if ema is None else expert.ending + AVERAGE
    facts = dataclasses.replace(
        facts,
        output_name=f"{facts.output_name}{ending}",
        sd_model_name=Path(expert.dit).name,
        ema_decay="" if ema is None else ema.decay,
    )
    if len(network.alphas) == 1 or job[Network].network_weights:  # what 0 stands for, or those of the file
        facts = dataclasses.replace(facts, network_alpha=max(network.alphas))
    if job[Network].dim_from_weights:  # then the options do not know them
        module = next((name for name, kind in MODULES.items() if kind.name in network.kinds), facts.network_module)
        facts = dataclasses.replace(facts, network_module=module, network_dim=max(network.ranks))
    spec = ModelSpec(
        architecture=options.MODELSPEC_ARCHITECTURE,
        implementation=options.MODELSPEC_IMPLEMENTATION,
        title=(metadata.metadata_title or job[Saving].output_name) + ending,
        custom_architecture=metadata.metadata_arch or "",
        author=metadata.metadata_author or "",
        description=metadata.metadata_description or "",
        license=metadata.metadata_license or "",
        tags=metadata.metadata_tags or "",
        resolution=metadata.resolution or size,
        timesteps=(lowest, highest) if (lowest, highest) != (0, 1000) else None,
    )
    wanted, parts_of = job[Network].lora_format or options.LORA_FORMAT, part(job.family, "keys").diffusers_parts
    dtype = dtype_of(job[Saving].save_precision, torch.float32, flag="--save_precision")

    def write(path: Path, step: int, epoch: int) -> None:
        said = lora_metadata(facts, spec, steps=step, epoch=epoch, no_metadata=metadata.no_metadata)
        with nullcontext() if ema is None else ema.shown():
            write_lora(path, named(network.weights(), wanted, parts_of=parts_of), metadata=said, dtype=dtype)

    return write
