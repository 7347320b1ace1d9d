"""`cache-latents <family>`: every clip of the dataset to latents, once, so that training never loads the VAE."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..contract.events import Control, Say, Stage
from ..contract.job import Job
from ..contract.options import Data, LatentCaching, Models, Run
from ..data.config import load_config
from ..data.pipeline import cache_latents
from ..families import part
from ..ops.device import choose_device, dtype_of
from ..parts.weights import open_weights
from .needs import needed


def home(job: Job) -> Path:
    return Path(job[Data].dataset_config).resolve().parent


class LazyVae:
    """The VAE, loaded when the first clip arrives: with nothing to encode it is never read."""

    def __init__(self, job: Job, say: Say):
        self._job, self._say, self._part = job, say, part(job.family, "vae")
        models = job[Models]
        self.path = needed(models.vae, "--vae", "the VAE file")
        self.device = choose_device(job[Run].device)
        self.dtype = dtype_of(models.vae_dtype, self._part.compute_dtype(self.device), flag="--vae_dtype")
        self.stored_dtype = dtype_of(models.vae_dtype, torch.bfloat16, flag="--vae_dtype")
        self.identity = open_weights(self.path, role="--vae").identity()

    @cached_property
    def _model(self) -> Any:
        self._say(Stage(name="Loading the VAE", message=f"{self.path} on {self.device}"))
        arguments = part(self._job.family, "options").vae_arguments(self._job)
        return self._part.load(self.path, device=self.device, dtype=self.dtype, **arguments)

    def encode(self, clips_BCFHW: Tensor) -> list[dict[str, Tensor]]:
        """Each clip's tensors in the number format that the cache keeps."""
        samples = self._part.training_samples(self._model, clips_BCFHW)
        return [{name: _stored(value, self.stored_dtype) for name, value in sample.items()} for sample in samples]


def _stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def run(job: Job, say: Say, control: Control) -> str:
    caching, options = job[LatentCaching], part(job.family, "options")
    say(Stage(name="Reading the dataset", message=job[Data].dataset_config))
    config = load_config(job[Data].dataset_config, say=say)
    vae = LazyVae(job, say)
    torch.backends.cudnn.enabled = not caching.disable_cudnn_backend
    report = cache_latents(
        config,
        architecture=options.ARCHITECTURE,
        native_fps=options.NATIVE_FPS,
        encode=vae.encode,
        identity=vae.identity,
        settings={"dtype": str(vae.stored_dtype).removeprefix("torch.")},
        workers=caching.num_workers or max(1, (torch.get_num_threads() or 2) - 1),
        batch_size=caching.batch_size or 1,
        skip_existing=caching.skip_existing,
        recache=caching.recache,
        keep_cache=caching.keep_cache,
        strict=caching.strict,
        device=vae.device,
        dtype=vae.dtype,
        say=say,
        control=control,
    )
    return f"{report.done} windows cached, {report.skipped} were there, {len(report.failed)} left out"
