"""What a training reads: the caches to train and validate on, and the batches made from them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..contract.errors import DataError
from ..contract.events import Log, Meter, Say, Stage, Warning_
from ..contract.job import Job
from ..contract.options import Data, Models, Timesteps, Training
from ..contract.options import Validation as ValidationOptions
from ..data import cache
from ..data.batches import BatchSampler, TrainItem, load_items
from ..data.collate import Loader
from ..data.config import DatasetConfig, load_config
from ..data.holdout import choose, hold_out, learned, one_by_one
from ..families import part
from ..parts.weights import open_weights
from ..training.group import Group
from ..training.setup import count_steps
from ..training.validation import Validation
from . import resuming
from .loading import QUIET_S
from .resuming import Start


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What is trained on, and for how long. `binding`: the options that identify this training (tasks/resuming.py)."""

    config: DatasetConfig
    loader: Loader
    validation: Validation | None
    seed: int
    steps: int
    epochs: int
    binding: dict[str, Any]

    @property
    def preserves_prior(self) -> bool:
        """Whether some clips are there to keep the model's answers as they are without the LoRA."""
        return self.loader.sampler.preserves_prior

    def item_names(self, epoch: int, first: int, count: int) -> list[str]:
        """Names of the cache files in `count` batches of an epoch, for messages."""
        batches = self.loader.sampler.together(epoch)[first : first + count]
        return [item.latent_path.name for batch in batches for item in batch.items]


def read_training_data(job: Job, start: Start, group: Group, say: Say, *, pin_memory: bool) -> TrainingData:
    """Read the dataset file and its caches, and derive seed, steps and epochs. DataError."""
    training = job[Training]
    say(Stage(name="Reading the dataset", message=job[Data].dataset_config))
    config = load_config(job[Data].dataset_config, say=say)
    seed = group.broadcast(_seed(training.seed, start))
    items, validation = training_items(job, config, say)
    loader = loader_of(job, config, items, seed, group, pin_memory=pin_memory)
    steps, epochs = count_steps(
        len(loader),
        accumulation=training.gradient_accumulation_steps * group.count,
        max_train_steps=training.max_train_steps,
        max_train_epochs=training.max_train_epochs,
    )
    binding = resuming.binding_options(
        job,
        items,
        batch_sizes=[dataset.batch_size for dataset in config.datasets],
        seed=seed if training.seed is None else training.seed,
    )
    return TrainingData(
        config=config, loader=loader, validation=validation, seed=seed, steps=steps, epochs=epochs, binding=binding
    )


def _seed(given: int | None, start: Start) -> int:
    """The seed of the state being resumed; else the job's, else that of an earlier attempt, else a new one."""
    if start.seed is not None and (start.state is not None or given is None):
        return start.seed
    return random.SystemRandom().randrange(2**32) if given is None else given


def training_items(job: Job, config: DatasetConfig, say: Say) -> tuple[list[TrainItem], Validation | None]:
    """The items to train on, and what to validate on. DataError."""
    options, wanted = part(job.family, "options"), job[ValidationOptions]
    names = {"architecture": options.ARCHITECTURE, "say": say, "family": job.family}
    items = load_items(config, **names)
    _check_items(job, items, say)
    if not wanted.wanted:
        return items, None
    if wanted.validation_dataset_config is None:
        items, held = hold_out(items, wanted.validation_split, seed=wanted.validation_seed)
    else:
        say(Stage(name="Reading the validation dataset", message=wanted.validation_dataset_config))
        held = learned(load_items(load_config(wanted.validation_dataset_config, say=say), **names))
        if not held:
            raise DataError(
                f"{wanted.validation_dataset_config}: all clips have preserve_prior; none shows what is learned.",
                "Name another dataset with --validation_dataset_config.",
            )
        _check_items(job, held, say)
        twice = {item.latent_path.resolve() for item in items} & {item.latent_path.resolve() for item in held}
        if twice and wanted.validation_dataset_config == job[Data].dataset_config:
            say(Log(message="Validating on the training clips: this shows what has been memorised."))
        elif twice:
            say(Warning_(message=f"{len(twice)} of the {len(held)} validation clips are also trained on."))
    held = choose(held, wanted.max_validation_steps, seed=wanted.validation_seed)
    say(Log(message=f"Clips to train on: {len(items)}, to validate on: {len(held)}."))
    sigmas = sorted({timestep / 1000 for timestep in wanted.validation_timesteps})
    return items, Validation(
        clips=lambda first, every: one_by_one(held[first::every]),
        count=len(held),
        sigmas=sigmas,
        seed=wanted.validation_seed,
        every_n_steps=wanted.validate_every_n_steps,
        every_n_epochs=wanted.validate_every_n_epochs,
        keep_best=wanted.save_best_validation,
        measure=_measure(held, sigmas, wanted.validation_seed),
    )


def _measure(held: Sequence[TrainItem], sigmas: Sequence[float], seed: int) -> str:
    """The same in validations whose losses compare."""
    told = json.dumps([sorted(item.latent_path.name for item in held), sigmas, seed])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def loader_of(
    job: Job, config: DatasetConfig, items: Sequence[TrainItem], seed: int, group: Group, *, pin_memory: bool
) -> Loader:
    """The loader of this process's batches, for any epoch."""
    sampler = BatchSampler(
        items,
        batch_sizes=[dataset.batch_size for dataset in config.datasets],
        seed=seed,
        num_timestep_buckets=job[Timesteps].num_timestep_buckets,
        rank=group.number,
        world=group.count,
    )
    return Loader(sampler, workers=min(4, max(1, job[Training].max_data_loader_n_workers)), pin_memory=pin_memory)


def _check_items(job: Job, items: Sequence[TrainItem], say: Say) -> None:
    """Caches may be good for another variant of the family. DataError names the first that will not do for this one."""
    model, options = part(job.family, "model"), part(job.family, "options")
    arguments = options.conditioning_arguments(job)
    task, check_values = options.dit_arguments(job)["task"], getattr(model, "check_values", None)
    meter = Meter(say, total=len(items), unit="caches", label="Checking the caches", quiet_s=QUIET_S)
    states, width = getattr(model, "CACHED_STATES", ""), _text_width(job)
    for item in items:
        meter.advance()
        lacks = model.check_cache(item.shapes, **arguments)
        if not lacks and states in item.shapes and item.shapes[states][-1] != width:
            lacks = (
                f"its text has {item.shapes[states][-1]} numbers a token, but --dit takes {width}. It was encoded for "
                "another model: run cache-text again with this one's text encoder, and cache-latents with its VAE."
            )
        if not lacks and check_values is not None:
            read = cache.read(item.latent_path, model.CHECKED_VALUES)
            lacks = check_values({cache.plain_name(key): value for key, value in read.items()}, task=task)
        if lacks:
            raise DataError(f"{item.latent_path.name} cannot be trained on: {lacks}", "Then train again.")


def _text_width(job: Job) -> int | None:
    """What the DiT takes as text, from its header; None for a family whose models have no such number."""
    file = open_weights(job[Models].dit, role="--dit")
    variant = part(job.family, "detect").detect(file.shapes, file.metadata, source=f"--dit {file.path.name}")
    return getattr(variant.config, "text_dim", None)
